"""The index of item vectors: the one place that talks to FAISS.

Shape suffixes: E queries, N items, D width, K results.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import faiss
import numpy as np

from pinrec.exact import Rows, inner_products, perturbed_rows, recall

EXACT_BELOW: Final = 10_000
"""Below so many items an exact scan for all embeddings of a list takes less time than the rest of the list."""
RECALL_GOAL: Final = 0.98
_TIE: Final = 1e-5  # FAISS adds up in another order
_TRAINED_PER_LIST: Final = 64
_LEAST_PER_LIST: Final = 39  # what FAISS wants at least to find a centroid
_MOST_VISITED: Final = 1 / 8  # share of the lists beyond which a scan of everything, in blocks, is as fast


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
    """What was built.

    Attributes:
        nprobe: lists visited by a search; 0 = all there is.
        recall: recall@100 against the exact scan.
        trained_nprobe: lists visited when the centroids were found.
    """

    kind: Literal["exact", "ivf"]
    nprobe: int
    recall: float
    trained_nprobe: int = 0


class ItemIndex:
    """Maximum inner product over the rows of an item table."""

    def __init__(self, index: Any, report: IndexReport | None = None) -> None:
        self._index = index
        self.report = report

    @classmethod
    def build(
        cls,
        table_ND: np.ndarray,
        exact_below: int = EXACT_BELOW,
        recall_goal: float = RECALL_GOAL,
        like: "ItemIndex | None" = None,
        stays_N: np.ndarray | None = None,
    ) -> "ItemIndex":
        """An exact index below `exact_below` items, else IVF.

        Of IVF the number of lists visited is doubled until recall@100 on perturbed rows reaches `recall_goal`. Vectors
        without any neighbourhoods, as of weights hardly trained, would need nearly all lists: their index is exact too.
        Centroids, and finding each row's own, are nearly all of the cost: both are taken over from an older index as
        long as that reaches the goal with at most twice the lists visited that its centroids began with.

        Args:
            table_ND: float32, L2-normalised.
            like: an index over an older table.
            stays_N: int64[N], the row of the older table in whose list each row stays; -1 = its list is found anew.
        """
        items, width = table_ND.shape
        if items < exact_below:
            return cls._exact(table_ND)
        lists = max(1, min(round(4 * items**0.5), items // _LEAST_PER_LIST))
        if like is not None and stays_N is not None and like._serves_as_model(lists, width):
            for kept_N in (stays_N, np.full(items, -1)):
                index, trained = like._followed_by(table_ND, kept_N), like._trained_nprobe
                for nprobe in sorted({like._index.nprobe, min(2 * trained, like._index.nlist)}):
                    index._index.nprobe = nprobe
                    if (recall := index.recall(table_ND)) >= recall_goal:
                        index.report = IndexReport("ivf", nprobe, recall, trained)
                        return index
        # Some thousand centroids are scanned faster than a graph over them is walked for hundreds of lists, and a graph
        # may never reach the right ones: asked for all of 2,191 lists, one over item vectors gave 400.
        ivf: Any = faiss.index_factory(width, f"IVF{lists},Flat", faiss.METRIC_INNER_PRODUCT)
        rows = np.random.default_rng(0).choice(items, min(items, _TRAINED_PER_LIST * lists), replace=False)
        ivf.train(table_ND[np.sort(rows)])
        ivf.add(table_ND)
        index = cls(ivf)
        ivf.nprobe, most = min(8, lists), max(8, round(_MOST_VISITED * lists))
        while (recall := index.recall(table_ND)) < recall_goal:
            if ivf.nprobe >= most:
                return cls._exact(table_ND)
            ivf.nprobe = min(2 * ivf.nprobe, most)
        index.report = IndexReport("ivf", ivf.nprobe, recall, ivf.nprobe)
        return index

    @classmethod
    def _exact(cls, table_ND: np.ndarray) -> "ItemIndex":
        flat = faiss.IndexFlatIP(table_ND.shape[1])
        flat.add(table_ND)
        return cls(flat, IndexReport("exact", 0, 1.0))

    @property
    def has_lists(self) -> bool:
        """Whether it is an IVF."""
        return isinstance(self._index, faiss.IndexIVF)

    @property
    def _trained_nprobe(self) -> int:
        return self.report.trained_nprobe if self.report is not None else self._index.nprobe

    def _serves_as_model(self, lists: int, width: int) -> bool:
        """Whether it has about as many lists as an index that is built now."""
        return self.has_lists and self.width == width and lists / 2 <= self._index.nlist <= 2 * lists

    def _followed_by(self, table_ND: np.ndarray, stays_N: np.ndarray) -> "ItemIndex":
        """An IVF with this one's centroids over another table; see `build`."""
        own, (items, width) = self._index, table_ND.shape
        ivf = faiss.IndexIVFFlat(faiss.clone_index(own.quantizer), width, own.nlist, faiss.METRIC_INNER_PRODUCT)
        list_N = np.full(items, -1, np.int64)
        known = stays_N >= 0
        if known.any():
            list_of_row = np.empty(len(self), np.int64)
            for number in range(own.nlist):
                if size := own.invlists.list_size(number):
                    list_of_row[faiss.rev_swig_ptr(own.invlists.get_ids(number), size)] = number
            list_N[known] = list_of_row[stays_N[known]]
        if not known.all():
            list_N[~known] = ivf.quantizer.search(np.ascontiguousarray(table_ND[~known]), 1)[1][:, 0]
        rows = np.ascontiguousarray(table_ND, np.float32)
        ivf.add_core(items, faiss.swig_ptr(rows), None, faiss.swig_ptr(list_N))
        return ItemIndex(ivf)

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
            writer = faiss.PyCallbackIOWriter(file.write)  # type: ignore[attr-defined]
            faiss.write_index(self._with_own_lists(), writer)

    def _with_own_lists(self) -> Any:
        """The index, with lists in memory: of lists that are mapped FAISS writes down nothing but where they lie."""
        own = self._index
        if not self.has_lists or not isinstance(faiss.downcast_InvertedLists(own.invlists), faiss.OnDiskInvertedLists):
            return own
        ivf: Any = faiss.IndexIVFFlat(faiss.clone_index(own.quantizer), own.d, own.nlist, own.metric_type)
        for number in range(own.nlist):
            if size := own.invlists.list_size(number):
                ids, codes = own.invlists.get_ids(number), own.invlists.get_codes(number)
                ivf.invlists.add_entries(number, size, ids, codes)
        ivf.nprobe, ivf.ntotal, ivf.is_trained = own.nprobe, own.ntotal, True
        return ivf

    @classmethod
    def load(cls, path: Path, mmap: bool = True, report: IndexReport | None = None) -> "ItemIndex":
        """Read an index; `mmap` lets processes of one machine share its pages. `report`: of when it was built.

        Raises:
            IndexFileError: not an index.
        """
        with path.open("rb") as file:
            # Inverted lists ("Iw..") and flat codes ("Ix..") are mapped by different flags, and neither takes both.
            flag = faiss.IO_FLAG_MMAP if file.read(2) == b"Iw" else faiss.IO_FLAG_MMAP_IFC
        try:
            return cls(faiss.read_index(str(path), flag if mmap else 0), report)
        except RuntimeError as error:
            raise IndexFileError(f"{path.name}: {error}") from None
