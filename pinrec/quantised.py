"""Vectors as INT8 with one scale a row: a quarter of the size of float32, read by rows from a file that is mapped.

Shape suffixes: E queries, N rows, D width.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pinrec.exact import CHUNK, best_rows, inner_products, recall

STEPS = 127
"""Symmetric: -127 to 127 steps of the row's scale. Zero stays zero, and a row's sign can be turned."""


def row_dtype(width: int) -> np.dtype[np.void]:
    """One row as it is stored: the scale and its steps side by side, so that a row is in one page or two."""
    return np.dtype([("scale", "<f4"), ("steps", "i1", (width,))])


class QuantisedTable:
    """Rows that are float32 when they are asked for: `table[rows]` makes those rows and no others.

    Args:
        stored: [N] of `row_dtype`, in memory or mapped.
    """

    def __init__(self, stored: NDArray[np.void]) -> None:
        self.stored = stored

    @property
    def shape(self) -> tuple[int, int]:
        """(N, D)."""
        return len(self.stored), self.stored.dtype["steps"].shape[0]

    def __len__(self) -> int:
        return len(self.stored)

    def __getitem__(self, rows: Any, /) -> NDArray[np.float32]:
        found = self.stored[rows]
        return found["scale"][..., None] * found["steps"]  # type: ignore[no-any-return]

    def bound(self, rows: Any = slice(None)) -> NDArray[np.float32]:
        """How far a number of each of the rows may be from what was quantised: half a step."""
        return self.stored["scale"][rows] / 2  # type: ignore[no-any-return]


def quantise(table_ND: NDArray[np.float32]) -> QuantisedTable:
    """The nearest multiples of each row's scale, which is its largest number over 127.

    Raises:
        ValueError: a row that is not finite, by its number.
    """
    stored = np.empty(len(table_ND), row_dtype(table_ND.shape[1]))
    for at in range(0, len(table_ND), CHUNK):
        x_ND = np.asarray(table_ND[at : at + CHUNK], np.float64)
        bad = np.flatnonzero(~np.isfinite(x_ND).all(axis=1))
        if len(bad):
            raise ValueError(f"row {at + bad[0]} has NaN or infinity")
        largest_N = np.abs(x_ND).max(axis=1, initial=0)
        scale_N = (largest_N / STEPS).astype(np.float32)
        # Rounded down, 127 steps would fall short of the largest number; it matters where numbers are all but zero.
        scale_N = np.where(scale_N * float(STEPS) < largest_N, np.nextafter(scale_N, np.float32(np.inf)), scale_N)
        stored["scale"][at : at + CHUNK] = scale_N
        stored["steps"][at : at + CHUNK] = np.rint(x_ND / np.where(scale_N, scale_N, 1)[:, None].astype(np.float64))
    return QuantisedTable(stored)


def int8_recall(table_ND: NDArray[np.float32], q_ED: NDArray[np.float32], k: int = 100) -> float:
    """recall@k of an exact scan of the quantised rows against one of the rows themselves.

    Args:
        table_ND: float32.
        q_ED: queries; `pinrec.exact.perturbed_rows`, or what a model asks for.
        k: at most N count.
    """
    k = min(k, len(table_ND))
    found_EK = best_rows(inner_products(q_ED, quantise(table_ND)), k)
    exact_EN = inner_products(q_ED, table_ND)
    return recall(exact_EN, found_EK, best_rows(exact_EN, k))
