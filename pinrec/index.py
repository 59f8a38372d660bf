"""The index of item vectors: the one place that talks to FAISS.

Shape suffixes: E queries, N items, D width, K results.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import faiss
import numpy as np

from pinrec.exact import Rows, inner_products, perturbed_rows, recall

EXACT_BELOW: Final = 200_000
"""Up to this many items an exact scan answers in a few milliseconds, so no graph is built."""
RECALL_GOAL: Final = 0.98
_TIE: Final = 1e-5  # FAISS adds up in another order
_TRAINED_PER_LIST: Final = 64


def use_threads(threads: int) -> None:
    """Threads of every search in this process.

    FAISS and torch bring an OpenMP runtime each, and idle threads of the one spin while the other works:
    with as many threads as cores in both, a small search takes many times as long as with one.
    """
    faiss.omp_set_num_threads(threads)


class IndexFileError(ValueError):
    """The file holds no index that can be read."""


@dataclass(frozen=True, slots=True)
class IndexReport:
    """What was built: `recall` is recall@100 against the exact scan, `nprobe` the lists visited (0 = all)."""

    kind: Literal["exact", "ivf_hnsw"]
    nprobe: int
    recall: float


class ItemIndex:
    """Maximum inner product over the rows of an item table."""

    def __init__(self, index: Any, report: IndexReport | None = None) -> None:
        self._index = index
        self.report = report

    @classmethod
    def build(
        cls, table_ND: np.ndarray, exact_below: int = EXACT_BELOW, recall_goal: float = RECALL_GOAL
    ) -> "ItemIndex":
        """An exact index below `exact_below` items, else IVF with an HNSW quantiser.

        Of IVF the number of lists visited is doubled until recall@100 on perturbed rows reaches `recall_goal`.

        Args:
            table_ND: float32, L2-normalised.
        """
        items, width = table_ND.shape
        if items < exact_below:
            flat = faiss.IndexFlatIP(width)
            flat.add(table_ND)
            return cls(flat, IndexReport("exact", 0, 1.0))
        lists = max(1, round(4 * items**0.5))
        ivf: Any = faiss.index_factory(width, f"IVF{lists}_HNSW32,Flat", faiss.METRIC_INNER_PRODUCT)
        rows = np.random.default_rng(0).choice(items, min(items, _TRAINED_PER_LIST * lists), replace=False)
        ivf.train(table_ND[np.sort(rows)])
        ivf.add(table_ND)
        index = cls(ivf)
        ivf.nprobe = min(8, lists)
        while (recall := index.recall(table_ND)) < recall_goal and ivf.nprobe < lists:
            ivf.nprobe = min(2 * ivf.nprobe, lists)
        index.report = IndexReport("ivf_hnsw", ivf.nprobe, recall)
        return index

    def __len__(self) -> int:
        return int(self._index.ntotal)

    @property
    def width(self) -> int:
        """D."""
        return int(self._index.d)

    def search(self, q_ED: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """(scores float32[E, k], rows int64[E, k]), best first; rows are -1 where the index has no more to give."""
        return self._index.search(np.ascontiguousarray(q_ED, np.float32), k)  # type: ignore[no-any-return]

    def recall(self, table: Rows, k: int = 100) -> float:
        """Share of the exact scan's top k that a search finds, for perturbed rows of the table.

        What a search returns is scored again by the table: an index over other vectors, or over the same
        ones in another order, finds little.
        """
        q_ED = perturbed_rows(table)
        _, rows_EK = self.search(q_ED, min(k, len(table)))
        return recall(inner_products(q_ED, table), rows_EK, _TIE)

    def save(self, path: Path) -> None:
        """Write the index.

        Raises:
            OSError: the file cannot be written in full.
        """
        with path.open("wb") as file:
            faiss.write_index(self._index, faiss.PyCallbackIOWriter(file.write))  # type: ignore[attr-defined]

    @classmethod
    def load(cls, path: Path, mmap: bool = True) -> "ItemIndex":
        """Read an index; `mmap` lets processes of one machine share its pages.

        Raises:
            IndexFileError: not an index.
        """
        with path.open("rb") as file:
            # Inverted lists ("Iw..") and flat codes ("Ix..") are mapped by different flags, and neither takes both.
            flag = faiss.IO_FLAG_MMAP if file.read(2) == b"Iw" else faiss.IO_FLAG_MMAP_IFC
        try:
            return cls(faiss.read_index(str(path), flag if mmap else 0))
        except RuntimeError as error:
            raise IndexFileError(f"{path.name}: {error}") from None
