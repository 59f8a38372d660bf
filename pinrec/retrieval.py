"""From embeddings to lists: search, filter, and share the places out.

Shape suffixes: B requests, E embeddings of a request in generation order (step, then outcome, then offset), Q
embeddings that are searched, K results of a search, D width, N items, G groups (a request and one of its outcomes), T
items that are taken.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Final

import numpy as np

from pinrec.budget import compress
from pinrec.config import GenerationConfig
from pinrec.delta import Delta, View
from pinrec.hashing import hash_id
from pinrec.pooling import Found, Pools, pooled
from pinrec.requests import ANY, Candidate, GenerationRequest

if TYPE_CHECKING:
    from pinrec.bundle import Bundle

# A search costs about the same for 32 results as for 8, and with 8 most users' seen items would call for a second one.
_SHALLOWEST: Final = 32
_DEEPEST: Final = 2_048
# Categories of no more rows than this are scanned: cheaper than to search on until enough of them turn up.
_SCANNED_ROWS: Final = 5_000
_SCANNED_SHARE: Final = 1 / 64


@dataclass(frozen=True, slots=True)
class Embeddings:
    """What was generated. `outcome_BE` is -1 where none was aimed at; `slots_BE` is 0 where a row has fewer outcomes.

    `offset_E` is NaN where no offset was aimed at.
    """

    e_BED: np.ndarray
    outcome_BE: np.ndarray
    offset_E: np.ndarray
    step_E: np.ndarray
    slots_BE: np.ndarray


@dataclass(frozen=True, slots=True)
class Filter:
    """What one request refuses.

    Attributes:
        hashes: uint64, of the items that must not come back.
        rows: the only rows that may, sorted; None = all.
    """

    hashes: np.ndarray
    rows: np.ndarray | None

    @classmethod
    def of(cls, view: View, request: GenerationRequest) -> "Filter":
        """That of a request."""
        return cls(_refused(request), view.category_rows(request.categories) if request.categories else None)

    def among(self, view: View, rows: np.ndarray) -> np.ndarray:
        """Those of some rows that may come back, in their order; none of them may be gone from the catalogue."""
        may = ~np.isin(view.hashes(rows), self.hashes)
        return rows[may if self.rows is None else may & np.isin(rows, self.rows)]

    def left(self, view: View) -> np.ndarray:
        """bool[len(view)]: which rows may come back."""
        left = np.full(len(view), self.rows is None)
        if self.rows is not None:
            left[self.rows] = True
        refused = view.rows(self.hashes)
        left[refused[refused != ANY]] = False
        view.exclude_gone(left)
        return left


def _refused(request: GenerationRequest) -> np.ndarray:
    """uint64, hashes of the items that a request refuses."""
    named = [hash_id(item_id) for item_id in request.exclude]
    if request.context_item is not None:
        named.append(hash_id(request.context_item))
    hashes = np.array(named, np.uint64)
    if not (request.exclude_seen and request.history):
        return hashes
    events = request.history.rows
    seen = events["item_hash"][events["is_query"] == 0]
    return np.concatenate((seen, hashes)) if named else seen


def retrieve(
    bundle: "Bundle",
    requests: Sequence[GenerationRequest],
    embeddings: Embeddings,
    config: GenerationConfig,
    delta: Delta | None = None,
) -> list[list[Candidate]]:
    """Search the index with all embeddings at once and fill every list."""
    return pools(View(bundle, delta), requests, embeddings, config, 1)


def pools(
    view: View,
    requests: Sequence[GenerationRequest],
    embeddings: Embeddings,
    config: GenerationConfig,
    depth: int,
) -> list[list[Candidate]]:
    """Each request's list of k; behind it, where the search found them, up to depth - 1 more for each of its places.

    A request whose filters leave an embedding short is searched again, alone and twice as deep, and in the end
    answered by an exact scan of what its filters leave: so is, at once, one whose categories hold few items.
    """
    slots_BE = compress(embeddings.e_BED, embeddings.outcome_BE, embeddings.slots_BE, config.compression)
    filters = [Filter.of(view, request) for request in requests]
    lists: list[list[Candidate]] = [[] for _ in requests]
    few = max(_SCANNED_ROWS, int(_SCANNED_SHARE * len(view)))
    scanned = {b for b, only in enumerate(filters) if only.rows is not None and len(only.rows) <= few}
    pending = [b for b in range(len(requests)) if b not in scanned]
    fetch = max(_SHALLOWEST, math.ceil(config.overfetch * depth * int(slots_BE.max())))
    while pending:
        fetch = min(fetch, len(view))
        row_Q, at_Q = np.nonzero(slots_BE[pending])
        request_Q = np.array(pending)[row_Q]
        found = Found(request_Q, at_Q, *view.search(embeddings.e_BED[request_Q, at_Q], fetch))
        made = _filled(view, requests, embeddings, slots_BE, found, filters, depth)
        lists = [made.get(b, listed) for b, listed in enumerate(lists)]
        short = [b for b in pending if len(lists[b]) < requests[b].k]
        if fetch >= min(len(view), _DEEPEST):
            scanned.update(short)
            break
        pending, fetch = short, 2 * fetch
    for b in scanned:
        at_Q = np.nonzero(slots_BE[b])[0]
        scored = _scan(view, filters[b], embeddings.e_BED[b, at_Q], depth * requests[b].k)
        found = Found(np.full(len(at_Q), b), at_Q, *scored)
        lists[b] = _filled(view, requests, embeddings, slots_BE, found, filters, depth)[b]
    return lists


def _filled(
    view: View,
    requests: Sequence[GenerationRequest],
    embeddings: Embeddings,
    slots_BE: np.ndarray,
    found: Found,
    filters: Sequence[Filter],
    depth: int,
) -> dict[int, list[Candidate]]:
    """The lists of all requests that were searched for, as far as what was found fills them; by request."""
    pools = pooled(view, embeddings.e_BED, embeddings.outcome_BE, slots_BE, found)
    asked = list(dict.fromkeys(pools.request_G.tolist()))
    hashes = [filters[b].hashes for b in asked]
    pools = pools.without(view, np.repeat(asked, [len(mine) for mine in hashes]), np.concatenate(hashes))
    for b in asked:
        if filters[b].rows is not None:
            pools = pools.only(b, filters[b].left(view))
    # An outcome whose best are all taken by the others has to look no deeper than all places together.
    best = pools.best(depth * max(requests[b].k for b in asked))
    queues = np.take_along_axis(pools.item_GM, best, 1).tolist()
    places, start = pools.places_G.tolist(), np.searchsorted(pools.request_G, asked).tolist()
    taken = [
        (lo + aim, i)
        for lo, hi in zip(start, [*start[1:], len(places)], strict=True)
        for aim, i in _fill(queues[lo:hi], places[lo:hi], depth)
    ]
    group_T, i_T = np.array(taken, np.int64).reshape(-1, 2).T
    lists: dict[int, list[Candidate]] = {b: [] for b in asked}
    for b, candidate in _candidates(view, embeddings, pools, group_T, best[group_T, i_T]):
        lists[b].append(candidate)
    return lists


def _fill(queues: Sequence[Sequence[int]], places: Sequence[int], depth: int) -> list[tuple[int, int]]:
    """(outcome, place in its queue): outcomes take turns by their places, and each takes the best that is left for it.

    Taking turns matters where outcomes want the same items: by score alone, one of them would take all of the best and
    leave the other what nobody wants. Once every place is filled, each outcome takes `depth` - 1 further items for
    each of its places.

    Args:
        queues: rows of each outcome, best first; ANY behind the last.
    """
    gone, left = {ANY}, [enumerate(queue) for queue in queues]
    taken: list[tuple[int, int]] = []
    for more in (1, depth - 1):
        for aim in turns(tuple(more * n for n in places)):
            for i, row in left[aim]:
                if row not in gone:
                    gone.add(row)
                    taken.append((aim, i))
                    break
            else:
                return taken
    return taken


@lru_cache(maxsize=1_024)
def turns(places: tuple[int, ...]) -> tuple[int, ...]:
    """Which of the outcomes is next, for all of their places: any head of the list holds each one's share, within one.

    The j-th of an outcome's n stands at (j + 1/2) / n of the list.
    """
    at = [((j + 0.5) / n, -n, aim) for aim, n in enumerate(places) for j in range(n)]
    return tuple(aim for _, _, aim in sorted(at))


def _scan(view: View, only: Filter, q_QD: np.ndarray, depth: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores and rows [Q, K] of the exact best `depth` that the filter leaves.

    With `depth` as many as are wanted in all, every embedding still has enough after the others have taken theirs.
    """
    rows = np.nonzero(only.left(view))[0]
    score_QN = q_QD @ view.vectors(rows).T
    depth = min(depth, len(rows))
    best_QK = np.argpartition(-score_QN, max(depth - 1, 0), axis=1)[:, :depth] if depth else score_QN.astype(np.int64)
    return np.take_along_axis(score_QN, best_QK, axis=1), rows[best_QK]


def _candidates(
    view: View, embeddings: Embeddings, pools: Pools, group_T: np.ndarray, place_T: np.ndarray
) -> Iterator[tuple[int, Candidate]]:
    """The items at such places of groups, each behind its request, and what was aimed at when it was found."""
    names = [*(action.name for action in view.bundle.vocabulary.actions), None]  # the last is that of ANY
    request_T, at_T = pools.request_G[group_T], pools.aimed(group_T, place_T)
    rows = pools.item_GM[group_T, place_T].tolist()
    columns = (
        rows,
        view.item_ids(rows),
        pools.score_GM[group_T, place_T].tolist(),
        [names[outcome] for outcome in embeddings.outcome_BE[request_T, at_T].tolist()],
        [None if math.isnan(offset_s) else offset_s for offset_s in embeddings.offset_E[at_T].tolist()],
        embeddings.step_E[at_T].tolist(),
    )
    return zip(request_T.tolist(), map(Candidate, *columns), strict=True)
