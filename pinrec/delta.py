"""What happened to the catalogue since a bundle was made: items that are new, changed or gone, without training.

A bundle never changes, so a delta lies over it. Rows from N on are the delta's; rows of the bundle whose items were
deleted or changed are gone. Shape suffixes: N items of the bundle, M items of the delta, Q queries, K results, D width.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from pinrec.hashing import hash_id
from pinrec.index import ItemIndex
from pinrec.items import Catalogue, Item
from pinrec.popularity import DEPTH, Popularity
from pinrec.requests import ANY

if TYPE_CHECKING:
    from pinrec.bundle import Bundle

Rows = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Delta:
    """Changes of one bundle's catalogue; immutable, so a batch that has read it once mixes nothing.

    Attributes:
        catalogue: the M new and changed items, as they are now.
        table: float32[M, D], their vectors by the bundle's own model: content and hashes of the id, nothing trained.
        index: an exact one over `table`; None where there is nothing in it.
        base: int64[M], the bundle's row of the same item; -1 for a new one.
        gone: bool[N + 1], rows of the bundle that must not come back; the last stands for -1, which is no row.
        popularity: popular items as they are now, and the newest, those of the delta among them.
        left_out: changes that found no room; the next version has them.
    """

    catalogue: Catalogue
    table: NDArray[np.float32]
    index: ItemIndex | None
    base: Rows
    gone: NDArray[np.bool_]
    popularity: Popularity
    left_out: int = 0

    @classmethod
    def of(cls, bundle: "Bundle", changes: Mapping[str, Item | None], most: int) -> Self:
        """See `updated`; nothing had happened before."""
        nothing = cls(
            catalogue=Catalogue.of([], bundle.config),
            table=np.empty((0, bundle.config.width), np.float32),
            index=None,
            base=np.empty(0, np.int64),
            gone=np.zeros(len(bundle.catalogue) + 1, np.bool_),
            popularity=bundle.popularity,
        )
        return nothing.updated(bundle, changes, most)

    @torch.inference_mode()
    def updated(self, bundle: "Bundle", changes: Mapping[str, Item | None], most: int) -> Self:
        """This delta and what has happened since; it costs the vectors of the changed items alone.

        An item that is again, or still, as in the bundle takes no room. Deletions need none either: they always hold.

        Args:
            bundle: the one that this delta is of.
            changes: the newest state of each item; None = deleted.
            most: new and changed items at most. Those that are here stay; for others an item of the bundle stays as it
                is there, and a new one is left out.
        """
        if not changes:
            return self
        touched = np.fromiter(map(hash_id, changes), np.uint64, len(changes))
        kept = np.setdiff1d(np.arange(len(self.catalogue)), self.catalogue.rows(touched))
        items = [item.fitting(bundle.config.content_width) for item in changes.values() if item is not None]
        fresh = Catalogue.of(items, bundle.config)
        was = bundle.catalogue.rows(fresh.hashes)
        same = _same(fresh, bundle.catalogue, was)
        # Who has a place keeps it.
        wanted = np.flatnonzero(~same)
        wanted = wanted[np.argsort(self.catalogue.rows(fresh.hashes[wanted]) < 0, kind="stable")]
        taken = wanted[: max(0, most - len(kept))]
        added = fresh.take(taken)
        table = np.concatenate((self.table[kept], bundle.model.item_table(added)))
        gone = self.gone.copy()
        removed = np.fromiter((item is None for item in changes.values()), np.bool_, len(changes))
        gone[bundle.catalogue.rows(touched[removed])] = True
        gone[was[same]] = False
        gone[was[taken]] = True
        gone[ANY] = False
        changed = replace(
            self,
            catalogue=self.catalogue.take(kept).joined(added),
            table=table,
            index=ItemIndex.build(table, exact_below=len(table) + 1) if len(table) else None,
            base=np.concatenate((self.base[kept], was[taken])),
            gone=gone,
            left_out=self.left_out + len(wanted) - len(taken),
        )
        return replace(changed, popularity=changed._popularity(bundle.popularity, bundle.catalogue))

    def __len__(self) -> int:
        return len(self.catalogue)

    @cached_property
    def deleted(self) -> int:
        """Items of the bundle that are there no more."""
        return int(self.gone.sum()) - int((self.base != ANY).sum())

    @cached_property
    def empty(self) -> bool:
        """Whether the catalogue is as in the bundle."""
        return not len(self) and not self.gone.any()

    def now(self, row: Rows) -> Rows:
        """Rows of the bundle as they are now: a changed item's is of the delta, a deleted one's is -1."""
        now = row.copy()
        hit = np.nonzero(self.gone[row])
        order = np.argsort(self.base, kind="stable")
        ranked = self.base[order]
        at = np.minimum(np.searchsorted(ranked, row[hit]), max(len(self) - 1, 0))
        now[hit] = np.where(ranked[at] == row[hit], len(self.gone) - 1 + order[at], ANY) if len(self) else ANY
        return now

    def _popularity(self, popularity: Popularity, catalogue: Catalogue) -> Popularity:
        kept = popularity.newest[~self.gone[popularity.newest]]
        dated = np.flatnonzero(self.catalogue.created_at > 0)
        newest = np.concatenate((kept, len(self.gone) - 1 + dated))
        created_at = np.concatenate((catalogue.created_at[kept], self.catalogue.created_at[dated]))
        return Popularity(self.now(popularity.ranked), newest[np.argsort(-created_at, kind="stable")][:DEPTH])


@dataclass(frozen=True, slots=True)
class View:
    """A bundle and what has happened to its catalogue since: all that a batch is made with, read once.

    Rows are the bundle's, then the delta's; those that are gone count, and are never found.
    """

    bundle: "Bundle"
    delta: Delta | None = None

    def __len__(self) -> int:
        return len(self.bundle.catalogue) + (0 if self.delta is None else len(self.delta))

    def search(self, q_QD: NDArray[np.float32], k: int) -> tuple[NDArray[np.float32], Rows]:
        """(scores, rows) [Q, K] of the best k, in no order; -1 where there is none."""
        score_QK, row_QK = self.bundle.index.search(q_QD, min(k, len(self.bundle.index)))
        if self.delta is None:
            return score_QK, row_QK
        gone_QK = self.delta.gone[row_QK]
        row_QK[gone_QK], score_QK[gone_QK] = ANY, -np.inf
        if self.delta.index is None:
            return score_QK, row_QK
        late_score_QK, late_QK = self.delta.index.search(q_QD, min(k, len(self.delta)))
        score_QK = np.concatenate((score_QK, late_score_QK), 1)
        row_QK = np.concatenate((row_QK, late_QK + len(self.bundle.catalogue)), 1)
        if score_QK.shape[1] <= k:
            return score_QK, row_QK
        best_QK = np.argpartition(-score_QK, k - 1, axis=1)[:, :k]
        return np.take_along_axis(score_QK, best_QK, 1), np.take_along_axis(row_QK, best_QK, 1)

    def vectors(self, row: Rows) -> NDArray[np.float32]:
        """float32[..., D]: the vectors of rows."""
        return _taken(row, self.bundle.table, self.delta.table if self.delta else None)

    def hashes(self, row: Rows) -> NDArray[np.uint64]:
        """uint64[...]: the hashes of rows' items."""
        return _taken(row, self.bundle.catalogue.hashes, self.delta.catalogue.hashes if self.delta else None)

    def rows(self, hashes: NDArray[np.uint64]) -> Rows:
        """Row of each item's hash, as it is now; -1 for an item that is unknown or deleted."""
        row = self.bundle.catalogue.rows(hashes)
        if self.delta is None:
            return row
        late = self.delta.catalogue.rows(hashes)
        row[self.delta.gone[row]] = ANY
        return np.where(late == ANY, row, late + len(self.bundle.catalogue))

    def category_rows(self, categories: frozenset[str]) -> Rows:
        """Sorted rows of the items that are in at least one of the categories; rows that are gone may be among them."""
        rows = self.bundle.catalogue.category_rows(categories)
        if self.delta is None:
            return rows
        return np.concatenate((rows, self.delta.catalogue.category_rows(categories) + len(self.bundle.catalogue)))

    def exclude_gone(self, left: NDArray[np.bool_]) -> None:
        """Clear what is gone in bool[len(self)]."""
        if self.delta is not None:
            left[: len(self.delta.gone) - 1][self.delta.gone[:-1]] = False

    @property
    def popularity(self) -> Popularity:
        """What is popular, and what is new."""
        return self.bundle.popularity if self.delta is None else self.delta.popularity

    @property
    def new_rows(self) -> Rows:
        """Rows of items that nobody engaged with lately, the delta's first; see `Bundle.new_rows`."""
        rows = self.bundle.new_rows
        if self.delta is None:
            return rows
        now = self.delta.now(rows)
        late = np.flatnonzero(self.delta.base == ANY) + len(self.bundle.catalogue)
        return np.concatenate((late, now[now != ANY]))

    def item_ids(self, rows: Sequence[int]) -> list[str]:
        """Of rows."""
        return self._texts(rows, lambda catalogue: catalogue.item_ids)

    def titles(self, rows: Sequence[int]) -> list[str]:
        """Of rows."""
        return self._texts(rows, lambda catalogue: catalogue.titles)

    def late_vector(self, item_id: str) -> NDArray[np.float32] | None:
        """float32[D] of an item that the delta knows better than the bundle; None where it does not."""
        if self.delta is None or (row := self.delta.catalogue.row(item_id)) == ANY:
            return None
        return self.delta.table[row]  # type: ignore[no-any-return]

    def _texts(self, rows: Sequence[int], of: Callable[[Catalogue], Sequence[str]]) -> list[str]:
        texts = of(self.bundle.catalogue)
        if self.delta is None:
            return [texts[row] for row in rows]
        n, late = len(texts), of(self.delta.catalogue)
        return [texts[row] if row < n else late[row - n] for row in rows]


def _taken(row: Rows, ours: Any, late: NDArray[Any] | None) -> NDArray[Any]:
    """What stands in rows of a column of the bundle, and of the delta's behind it; None = that has no items."""
    if late is None:
        return ours[row]  # type: ignore[no-any-return]
    n = len(ours)
    taken: NDArray[Any] = ours[np.minimum(row, n - 1)]
    behind = row >= n
    taken[behind] = late[row[behind] - n]
    return taken


def _same(fresh: Catalogue, base: Catalogue, was: Rows) -> NDArray[np.bool_]:
    """Which of the fresh items the base has just so, in its row `was`."""
    known = was != ANY
    row = np.where(known, was, 0)
    same: NDArray[np.bool_] = (
        known & (fresh.created_at == base.created_at[row]) & (fresh.has_content == base.has_content[row])
    )
    same &= (fresh.bags == base.bags[row]).all(1) & (fresh.content == base.content[row]).all(1)
    texts = zip(fresh.titles, fresh.categories, row.tolist(), strict=True)
    same &= np.array([t == base.titles[at] and c == base.categories[at] for t, c, at in texts], np.bool_)
    return same
