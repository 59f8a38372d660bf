"""From embeddings to lists: search, filter, and share the places out.

Shape suffixes: B requests, E embeddings of a request in generation order (step, then outcome, then offset), Q
embeddings that are searched, K results of a search, D width, N items.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Final

import numpy as np

from pinrec.budget import compress
from pinrec.config import GenerationConfig
from pinrec.delta import Delta, View
from pinrec.hashing import hash_id
from pinrec.pooling import Found, pooled
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
        refused: int64, rows that must not come back.
        rows: the only rows that may, sorted; None = all.
    """

    refused: np.ndarray
    rows: np.ndarray | None

    @classmethod
    def of(cls, view: View, request: GenerationRequest) -> "Filter":
        """That of a request."""
        return cls.of_all(view, [request])[0]

    @classmethod
    def of_all(cls, view: View, requests: Sequence[GenerationRequest]) -> "list[Filter]":
        """Those of a batch."""
        hashes = [_refused(request) for request in requests]
        row = view.rows(np.concatenate(hashes))
        ends = np.cumsum([len(mine) for mine in hashes])
        return [
            cls(mine[mine != ANY], view.category_rows(request.categories) if request.categories else None)
            for mine, request in zip(np.split(row, ends[:-1]), requests, strict=True)
        ]

    def among(self, rows: np.ndarray) -> np.ndarray:
        """Those of some rows that may come back, in their order; none of them may be gone from the catalogue."""
        may = ~np.isin(rows, self.refused)
        return rows[may if self.rows is None else may & np.isin(rows, self.rows)]

    def left(self, view: View) -> np.ndarray:
        """bool[len(view)]: which rows may come back."""
        left = np.full(len(view), self.rows is None)
        if self.rows is not None:
            left[self.rows] = True
        left[self.refused] = False
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
    filters = Filter.of_all(view, requests)
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
    pools = pools.without(
        np.repeat(asked, [len(filters[b].refused) for b in asked]), np.concatenate([filters[b].refused for b in asked])
    )
    for b in asked:
        if filters[b].rows is not None:
            pools = pools.only(b, filters[b].left(view))
    # An outcome whose best are all taken by the others has to look no deeper than all places together.
    best = pools.best(depth * max(requests[b].k for b in asked))
    start = np.searchsorted(best.request_G, asked).tolist()
    places, rows, scores, at = (array.tolist() for array in (best.places_G, best.item_GM, best.score_GM, best.at_GM))
    lists = {}
    for b, lo, hi in zip(asked, start, [*start[1:], len(places)], strict=True):
        taken = _fill(rows[lo:hi], places[lo:hi], depth)
        lists[b] = _candidates(
            view, embeddings, b, [(at[lo + aim][i], rows[lo + aim][i], scores[lo + aim][i]) for aim, i in taken]
        )
    return lists


def _fill(queues: Sequence[Sequence[int]], places: Sequence[int], depth: int) -> list[tuple[int, int]]:
    """(outcome, place in its queue): outcomes take turns by their places, and each takes the best that is left for it.

    Taking turns matters where outcomes want the same items: by score alone, one of them would take all of the best and
    leave the other what nobody wants. Once every place is filled, each outcome takes `depth` - 1 further items for
    each of its places.

    Args:
        queues: rows of each outcome, best first; ANY behind the last.
    """
    gone, next_ = {ANY}, [0] * len(queues)
    taken: list[tuple[int, int]] = []
    for more in (1, depth - 1):
        for aim in turns(tuple(more * n for n in places)):
            queue, i = queues[aim], next_[aim]
            while i < len(queue) and queue[i] in gone:
                i += 1
            if i == len(queue):
                return taken
            gone.add(queue[i])
            taken.append((aim, i))
            next_[aim] = i + 1
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


def _candidates(view: View, embeddings: Embeddings, b: int, taken: Sequence[tuple[int, int, float]]) -> list[Candidate]:
    """What one request's places were filled with, (embedding, row, score), and why, in the same order."""
    actions, outcome_E = view.bundle.vocabulary.actions, embeddings.outcome_BE[b].tolist()
    aims = [
        (None if outcome == ANY else actions[outcome].name, None if math.isnan(offset_s) else offset_s, step)
        for outcome, offset_s, step in zip(
            outcome_E, embeddings.offset_E.tolist(), embeddings.step_E.tolist(), strict=True
        )
    ]
    return [Candidate(row, view.item_id(row), score, *aims[at]) for at, row, score in taken]
