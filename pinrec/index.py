"""The index of item vectors: the one place that talks to FAISS.

Shape suffixes: E queries, N items, D width, K results.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import faiss
import numpy as np

EXACT_BELOW: Final = 200_000
"""Up to this many items an exact scan answers in a few milliseconds, so no graph is built."""
RECALL_GOAL: Final = 0.98
_TRAINED_PER_LIST: Final = 64
_SAMPLE: Final = 64


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

    def recall(self, table_ND: np.ndarray, k: int = 100, sample: int = _SAMPLE) -> float:
        """Share of the exact scan's top k that a search finds, for `sample` perturbed rows of the table.

        What a search returns is scored again by the table: an index over other vectors, or over the same
        ones in another order, finds little. An item as good as the k-th counts as found, whichever tie it is.
        """
        rng = np.random.default_rng(1)
        q_ED = np.array(table_ND[rng.integers(0, len(table_ND), sample)])
        q_ED += rng.normal(0, 0.3 / q_ED.shape[1] ** 0.5, q_ED.shape)
        q_ED /= np.linalg.norm(q_ED, axis=1, keepdims=True)
        k = min(k, len(table_ND))
        exact_EN = q_ED @ np.asarray(table_ND).T
        kth_E1 = -np.partition(-exact_EN, k - 1, axis=1)[:, k - 1 : k]
        _, rows_EK = self.search(q_ED, k)
        inside_EK = (rows_EK >= 0) & (rows_EK < len(table_ND))
        found_EK = inside_EK & (np.take_along_axis(exact_EN, np.where(inside_EK, rows_EK, 0), axis=1) >= kth_E1 - 1e-5)
        return float(found_EK.mean())

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
