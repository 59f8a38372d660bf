"""The index of item vectors: the one place that talks to FAISS.

Shape suffixes: E queries, N items, D width, K results.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal

import faiss
import numpy as np

from pinrec.exact import Rows, best_rows, inner_products, perturbed_rows, recall

EXACT_BELOW: Final = 10_000
"""Below so many items an exact scan for all embeddings of a list takes less time than the rest of the list."""
RECALL_GOAL: Final = 0.98
_TIE: Final = 1e-5  # FAISS adds up in another order
_BITS: Final = 4  # of a code: FAISS looks up 32 of them at once
_LEAST_LOOKED_AT: Final = 64
_MOST_LOOKED_AT: Final = 64  # rows for each one wanted: still far fewer than a scan of all vectors would score
_DEPTHS: Final = (2, 4, 8, 16)  # the same in lists: where these do not do, it is the lists that miss the best
_SCORED_TOGETHER: Final = 1 << 15  # rows: more would not stay in the cache, and memory is bounded by them
_TRAINED_PER_LIST: Final = 64
_TRAINED_CODES: Final = 16_384
_LEAST_PER_LIST: Final = 39  # what FAISS wants at least to find a centroid
_FIRST_VISITED: Final = 8
_MOST_VISITED: Final = 1 / 8  # share of the lists beyond which a scan of all codes is as fast
_TIMES_VISITED: Final = 4


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
        kind: exact scans the vectors; codes scans codes of 4 bits a number; ivf scans such codes, or half of them, in
            the lists nearest to a query. What codes find is scored by the vectors.
        nprobe: lists visited by a search; 0 = all there is.
        recall: recall@100 against the exact scan.
        trained_nprobe: lists visited when the centroids were found.
        looked_at: rows scored by the vectors for each one wanted, as codes order the best only roughly.
    """

    kind: Literal["exact", "codes", "ivf"]
    nprobe: int
    recall: float
    trained_nprobe: int = 0
    looked_at: int = 2


class ItemIndex:
    """Maximum inner product over the rows of an item table.

    Args:
        index: of FAISS.
        table: the vectors that what codes find is scored by; an exact index has its own.
    """

    def __init__(self, index: Any, report: IndexReport | None = None, table: Rows | None = None) -> None:
        self._index = index
        self.report = report
        self._looked_at = 2 if report is None else report.looked_at
        self._table = table

    @classmethod
    def build(
        cls,
        table_ND: np.ndarray,
        exact_below: int = EXACT_BELOW,
        recall_goal: float = RECALL_GOAL,
        like: "ItemIndex | None" = None,
        stays_N: np.ndarray | None = None,
    ) -> "ItemIndex":
        """An exact index below `exact_below` items, else an IVF over codes.

        The number of lists visited is the least, to an eighth, that reaches `recall_goal` on perturbed rows. Vectors
        without any neighbourhoods, as of weights hardly trained, would need nearly all lists: of these all codes are
        scanned, or the vectors where codes do not tell them apart.
        Centroids, and finding each row's own, are nearly all of the cost: both are taken over from an older index as
        long as that reaches the goal with at most twice the lists visited that its centroids began with, or four times
        as many where that is no more than an eighth of all.

        Args:
            table_ND: float32, L2-normalised.
            like: an index over an older table.
            stays_N: int64[N], the row of the older table in whose list each row stays; -1 = its list is found anew.
        """
        items, width = table_ND.shape
        if items < exact_below:
            return cls._exact(table_ND)
        judge = _Judge(table_ND)
        lists = max(1, min(round(4 * items**0.5), items // _LEAST_PER_LIST))
        if like is not None and stays_N is not None and like._serves_as_model(lists, width):
            for kept_N in (stays_N, np.full(items, -1)):
                index, trained = like._followed_by(table_ND, kept_N), like._trained_nprobe
                all_lists = like._codes.nlist
                most = max(min(2 * trained, all_lists), min(_TIMES_VISITED * trained, _most_visited(all_lists)))
                for index._looked_at in (depth for depth in _DEPTHS if 2 * depth >= like._looked_at):
                    if index._visits(judge, recall_goal, trained, most):
                        index.report = replace(index._report(judge), trained_nprobe=trained)
                        return index
        turn_DD = _turn(table_ND.mean(0))
        spread_ND = _spread(table_ND, turn_DD)
        found = cls._in_lists(table_ND, spread_ND, turn_DD, lists, judge, recall_goal)
        found = found or cls._of_codes(table_ND, spread_ND, turn_DD, judge, recall_goal)
        return found or cls._exact(table_ND)

    @classmethod
    def _in_lists(
        cls,
        table_ND: np.ndarray,
        spread_ND: np.ndarray,
        turn_DD: np.ndarray,
        lists: int,
        judge: "_Judge",
        recall_goal: float,
    ) -> "ItemIndex | None":
        """An IVF; None where an eighth of its lists does not reach the goal."""
        items, width = table_ND.shape
        centroid_CD = _centroids(spread_ND, lists)
        list_N = _nearest(centroid_CD, spread_ND)
        most = _most_visited(lists)
        if judge.share_in_lists(centroid_CD @ turn_DD, list_N, most) < recall_goal:
            return None
        sample = _sample(items, _TRAINED_CODES)
        # Half as many codes are scanned in half the time, where they tell the vectors apart.
        for codes_of_a_row, depths in ((width // 2, _DEPTHS[:1]), (width, _DEPTHS)):
            ivf = _empty_ivf(centroid_CD, codes_of_a_row)
            ivf.pq.train(spread_ND[sample] - centroid_CD[list_N[sample]])
            index = cls(_turning(turn_DD, _filled(ivf, spread_ND, list_N)), None, table_ND)
            for index._looked_at in depths:
                if index._visits(judge, recall_goal, min(_FIRST_VISITED, lists), most):
                    index.report = index._report(judge)
                    return index
        return None

    @classmethod
    def _of_codes(
        cls, table_ND: np.ndarray, spread_ND: np.ndarray, turn_DD: np.ndarray, judge: "_Judge", recall_goal: float
    ) -> "ItemIndex | None":
        """All codes, without lists; None where they do not reach the goal."""
        items, width = table_ND.shape
        codes = faiss.IndexPQFastScan(width, width, _BITS, faiss.METRIC_INNER_PRODUCT)
        codes.train(spread_ND[_sample(items, _TRAINED_CODES)])
        codes.add(spread_ND)
        index = cls(_turning(turn_DD, codes), None, table_ND)
        while (recall := judge.recall(index)) < recall_goal:
            if index._looked_at >= _MOST_LOOKED_AT:
                return None
            index._looked_at *= 2
        index.report = IndexReport("codes", 0, recall, 0, index._looked_at)
        return index

    def _visits(self, judge: "_Judge", recall_goal: float, first: int, most: int) -> bool:
        """Visit as few lists as will do, to an eighth; False where `most` do not do."""
        ivf = self._codes
        few, ivf.nprobe = 0, first
        while judge.recall(self) < recall_goal:
            if ivf.nprobe >= most:
                return False
            few, ivf.nprobe = ivf.nprobe, min(2 * ivf.nprobe, most)
        enough = int(ivf.nprobe)
        while enough - few > max(1, enough // 8):
            ivf.nprobe = (few + enough) // 2
            few, enough = (few, ivf.nprobe) if judge.recall(self) >= recall_goal else (ivf.nprobe, enough)
        ivf.nprobe = enough
        return True

    def _report(self, judge: "_Judge") -> IndexReport:
        visited = int(self._codes.nprobe)
        return IndexReport("ivf", visited, judge.recall(self), visited, self._looked_at)

    @classmethod
    def _exact(cls, table_ND: np.ndarray) -> "ItemIndex":
        flat = faiss.IndexFlatIP(table_ND.shape[1])
        flat.add(table_ND)
        return cls(flat, IndexReport("exact", 0, 1.0))

    def over(self, table: Rows) -> "ItemIndex":
        """The same, scored by the rows of another table: that which is kept of the one it was built over."""
        return self if self._table is None else ItemIndex(self._index, self.report, table)

    @cached_property
    def _vectors(self) -> np.ndarray:
        """float32[N, D] of an exact index: the memory that FAISS keeps, or has mapped."""
        flat: np.ndarray = faiss.rev_swig_ptr(self._index.get_xb(), len(self) * self.width)
        return flat.reshape(len(self), self.width)

    @property
    def has_lists(self) -> bool:
        """Whether it is an IVF."""
        return isinstance(self._codes, faiss.IndexIVFPQFastScan)

    @property
    def _codes(self) -> Any:
        """The index of codes behind the rotation; of an exact one itself."""
        return faiss.downcast_index(self._index.index) if self._table is not None else self._index

    @property
    def _trained_nprobe(self) -> int:
        return self.report.trained_nprobe if self.report is not None else self._codes.nprobe

    def _serves_as_model(self, lists: int, width: int) -> bool:
        """Whether it has about as many lists as an index that is built now."""
        return self.has_lists and self.width == width and lists / 2 <= self._codes.nlist <= 2 * lists

    def _followed_by(self, table_ND: np.ndarray, stays_N: np.ndarray) -> "ItemIndex":
        """An IVF with this one's centroids and codes over another table; see `build`."""
        own, width = self._codes, self.width
        turn: Any = faiss.downcast_VectorTransform(self._index.chain.at(0))
        turn_DD = faiss.vector_to_array(turn.A).reshape(width, width)
        spread_ND = _spread(table_ND, turn_DD)
        centroid_CD = own.quantizer.reconstruct_n(0, own.nlist)
        ivf = _empty_ivf(centroid_CD, own.pq.M)
        ivf.pq = own.pq
        list_N = np.full(len(table_ND), -1, np.int64)
        known = stays_N >= 0
        if known.any():
            list_of_row = np.empty(len(self), np.int64)
            for number in range(own.nlist):
                if size := own.invlists.list_size(number):
                    list_of_row[faiss.rev_swig_ptr(own.invlists.get_ids(number), size)] = number
            list_N[known] = list_of_row[stays_N[known]]
        if not known.all():
            list_N[~known] = _nearest(centroid_CD, spread_ND[~known])
        index = ItemIndex(_turning(turn_DD, _filled(ivf, spread_ND, list_N)), None, table_ND)
        index._looked_at = self._looked_at
        return index

    def __len__(self) -> int:
        return int(self._index.ntotal)

    @property
    def width(self) -> int:
        """D."""
        return int(self._index.d)

    def search(self, q_ED: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """(scores float32[E, k], rows int64[E, k]), best first; rows are -1 where the index has no more to give."""
        q_ED = np.ascontiguousarray(q_ED, np.float32)
        if self._table is None:
            from pinrec.scan import scan  # noqa: PLC0415 - compiled where it is searched

            return scan(self._vectors, q_ED, k)
        looked_at = max(k, min(max(self._looked_at * k, _LEAST_LOOKED_AT), len(self)))
        together = max(1, _SCORED_TOGETHER // looked_at)
        starts = range(0, max(1, len(q_ED)), together)
        found = [self._scored(q_ED[at : at + together], k, looked_at) for at in starts]
        return np.concatenate([score_EK for score_EK, _ in found]), np.concatenate([row_EK for _, row_EK in found])

    def _scored(self, q_ED: np.ndarray, k: int, looked_at: int) -> tuple[np.ndarray, np.ndarray]:
        """The best k for some of the queries of those rows that codes find best."""
        assert self._table is not None
        _, row_EC = self._index.search(q_ED, looked_at)
        score_EC = np.matmul(self._table[np.maximum(row_EC, 0)], q_ED[:, :, None])[..., 0]
        score_EC[row_EC < 0] = -np.inf
        best_EK = np.argpartition(-score_EC, k - 1, axis=1)[:, :k] if k < row_EC.shape[1] else np.arange(k)[None]
        score_EK = np.take_along_axis(score_EC, best_EK, axis=1)
        order_EK = np.argsort(-score_EK, axis=1, kind="stable")
        row_EK = np.take_along_axis(np.take_along_axis(row_EC, best_EK, axis=1), order_EK, axis=1)
        return np.take_along_axis(score_EK, order_EK, axis=1), row_EK

    def recall(self, table: Rows, k: int = 100) -> float:
        """Share of the exact scan's top k that a search finds, for perturbed rows of the table.

        What a search returns is scored again by the table: an index over other vectors, or over the same
        ones in another order, finds little.
        """
        return _Judge(table, k).recall(self)

    def save(self, path: Path) -> None:
        """Write the index.

        Raises:
            OSError: the file cannot be written in full.
        """
        with path.open("wb") as file:
            faiss.write_index(self._index, faiss.PyCallbackIOWriter(file.write))  # type: ignore[attr-defined]

    @classmethod
    def load(cls, path: Path, table: Rows, mmap: bool = True, report: IndexReport | None = None) -> "ItemIndex":
        """Read an index.

        Args:
            table: see `ItemIndex`.
            mmap: let processes of one machine share the pages of vectors. Codes are small, and read.
            report: of when it was built.

        Raises:
            IndexFileError: not an index.
        """
        try:
            # Vectors are mapped; a reader of codes takes no notice of the flag.
            index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC if mmap else 0)
        except RuntimeError as error:
            raise IndexFileError(f"{path.name}: {error}") from None
        return cls(index, report, None if isinstance(index, faiss.IndexFlat) else table)


class _Judge:
    """Tells how much of the exact scan's best an index finds; the scan is made once."""

    def __init__(self, table: Rows, k: int = 100) -> None:
        self._q_ED, self._k = perturbed_rows(table), min(k, len(table))
        self._exact_EN = inner_products(self._q_ED, table)
        self._best_EK = best_rows(self._exact_EN, self._k)

    def share_in_lists(self, centroid_CD: np.ndarray, list_N: np.ndarray, most: int) -> float:
        """Share of the best that lie in the `most` lists nearest to their query: no codes find more."""
        near_EC = np.argsort(-(self._q_ED @ centroid_CD.T), axis=1)[:, :most]
        return float((list_N[self._best_EK][:, :, None] == near_EC[:, None]).any(2).mean())

    def recall(self, index: ItemIndex) -> float:
        """See `ItemIndex.recall`."""
        return recall(self._exact_EN, index.search(self._q_ED, self._k)[1], self._best_EK, _TIE)


def _turn(mean_D: np.ndarray) -> np.ndarray:
    """float32[D, D]: the reflection that turns the mean into the first axis (Householder 1958)."""
    away_D = mean_D / max(float(np.linalg.norm(mean_D)), 1e-12)
    away_D[0] += 1.0 if away_D[0] >= 0 else -1.0
    return (np.eye(len(away_D)) - 2 * np.outer(away_D, away_D) / (away_D @ away_D)).astype(np.float32)


def _spread(table_ND: np.ndarray, turn_DD: np.ndarray) -> np.ndarray:
    """float32[N, D]: the vectors from their mean on, in units of their root mean square length, turned.

    A query, turned alike, orders them as it orders the vectors. Those of a model hardly trained lie close together:
    codes of what they have in common would leave nothing for what tells them apart, and most of a query would be spent
    on it in every number.
    """
    spread_ND: np.ndarray = np.subtract(table_ND, table_ND.mean(0), dtype=np.float32) @ turn_DD.T
    spread_ND /= max(float(np.sqrt(np.einsum("nd,nd->", spread_ND, spread_ND) / len(spread_ND))), 1e-12)
    return spread_ND


def _turning(turn_DD: np.ndarray, codes: Any) -> Any:
    """An index that turns its queries; what it holds already is turned."""
    width = len(turn_DD)
    turn: Any = faiss.LinearTransform(width, width, False)
    faiss.copy_array_to_vector(turn_DD.ravel(), turn.A)
    turn.is_trained = True
    return faiss.IndexPreTransform(turn, codes)


def _sample(items: int, most: int) -> np.ndarray:
    """int64, some rows, ascending; always the same ones."""
    return np.sort(np.random.default_rng(0).choice(items, min(items, most), replace=False))


def _centroids(spread_ND: np.ndarray, lists: int) -> np.ndarray:
    """float32[C, D]: means of what lies close together, not of length 1, so that a query sees how far out each is.

    Some thousand are scanned faster than a graph over them is walked for hundreds of lists, and a graph may never reach
    the right ones: asked for all of 2,191 lists, one over item vectors gave 400.
    """
    items, width = spread_ND.shape
    means: Any = faiss.Kmeans(width, lists, niter=10, seed=0, max_points_per_centroid=_TRAINED_PER_LIST)
    means.train(spread_ND[_sample(items, _TRAINED_PER_LIST * lists)])
    centroid_CD: np.ndarray = means.centroids
    return centroid_CD


def _nearest(centroid_CD: np.ndarray, spread_ND: np.ndarray) -> np.ndarray:
    """int64[N]: the list of each vector."""
    near = faiss.IndexFlatL2(centroid_CD.shape[1])
    near.add(centroid_CD)
    list_N: np.ndarray = near.search(spread_ND, 1)[1][:, 0]
    return list_N


def _most_visited(lists: int) -> int:
    return min(lists, max(_FIRST_VISITED, round(_MOST_VISITED * lists)))


def _empty_ivf(centroid_CD: np.ndarray, codes_of_a_row: int) -> Any:
    """An IVF whose lists are visited in the order of their centroids' inner products with a query."""
    lists, width = centroid_CD.shape
    quantizer = faiss.IndexFlatIP(width)
    quantizer.add(centroid_CD)
    ivf: Any = faiss.IndexIVFPQ(quantizer, width, lists, codes_of_a_row, _BITS, faiss.METRIC_INNER_PRODUCT)
    ivf.is_trained = True
    return ivf


def _filled(ivf: Any, spread_ND: np.ndarray, list_N: np.ndarray) -> Any:
    """The vectors in their lists, with their codes in blocks, as they are scanned."""
    ivf.add_core(len(spread_ND), faiss.swig_ptr(spread_ND), None, faiss.swig_ptr(list_N))
    fast: Any = faiss.IndexIVFPQFastScan(ivf)
    fast.referenced_objects = ivf.referenced_objects  # the centroids alone: `ivf` may go, with its codes
    return fast
