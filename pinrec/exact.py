"""The exact scan: what every approximation of it is measured against.

Shape suffixes: E queries, N items, D width, K results.
"""

from typing import Any, Final, Protocol

import numpy as np

CHUNK: Final = 16_384
"""Rows of a table looked at together: a table that lies in a file need not fit into memory."""


class Rows(Protocol):
    """Rows of float32 vectors: an array, or what makes them of a file as they are asked for."""

    @property
    def shape(self) -> Any:
        """(N, D)."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Any, /) -> np.ndarray: ...


def inner_products(q_ED: np.ndarray, table: Rows) -> np.ndarray:
    """float32[E, N]: every query with every row."""
    scores_EN = np.empty((len(q_ED), len(table)), np.float32)
    for at in range(0, len(table), CHUNK):
        scores_EN[:, at : at + CHUNK] = q_ED @ table[at : at + CHUNK].T
    return scores_EN


def best_rows(exact_EN: np.ndarray, k: int) -> np.ndarray:
    """int64[E, k]: the rows of the k best items of each query, in any order; k must not exceed N."""
    return np.stack([np.argpartition(exact_N, len(exact_N) - k)[len(exact_N) - k :] for exact_N in exact_EN])


def recall(exact_EN: np.ndarray, rows_EK: np.ndarray, best_EK: np.ndarray, tie: float = 0.0) -> float:
    """Share of the K best items of the exact scan among the K rows found; a row of -1 finds nothing.

    An item as good as the K-th, or worse by no more than `tie`, counts as found, whichever it is.

    Args:
        best_EK: of `best_rows`.
    """
    items = exact_EN.shape[1]
    kth_E1 = np.take_along_axis(exact_EN, best_EK, axis=1).min(1, keepdims=True)
    inside_EK = (rows_EK >= 0) & (rows_EK < items)
    score_EK = np.take_along_axis(exact_EN, np.where(inside_EK, rows_EK, 0), axis=1)
    return float((inside_EK & (score_EK >= kth_E1 - tie)).mean())


def perturbed_rows(table: Rows, sample: int = 64) -> np.ndarray:
    """Queries made of a table, float32[sample, D]: rows of it with some noise, of unit length; always the same ones."""
    rng = np.random.default_rng(1)
    q_ED = np.array(table[rng.integers(0, len(table), sample)])
    q_ED += rng.normal(0, 0.3 / q_ED.shape[1] ** 0.5, q_ED.shape)
    q_ED /= np.linalg.norm(q_ED, axis=1, keepdims=True)
    return q_ED
