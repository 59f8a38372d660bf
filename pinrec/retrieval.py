"""From embeddings to lists: search, filter, and share the places out.

Shape suffixes: B requests, E embeddings of a request in generation order (step, then outcome, then offset), Q
embeddings that are searched, K results of a search, D width, N items; see also `pinrec.pooling`.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from pinrec.budget import compress
from pinrec.config import GenerationConfig
from pinrec.delta import Delta, View
from pinrec.hashing import hash_id
from pinrec.pooling import Found, Pools, Taken
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
        _, item_QK = view.search(embeddings.e_BED[request_Q, at_Q], fetch)
        found = Found(request_Q, at_Q, item_QK)
        made = _filled(view, embeddings, slots_BE, found, filters, depth)
        lists = [made.get(b, listed) for b, listed in enumerate(lists)]
        short = [b for b in pending if len(lists[b]) < requests[b].k]
        if fetch >= min(len(view), _DEEPEST):
            scanned.update(short)
            break
        pending, fetch = short, 2 * fetch
    for b in scanned:
        at_Q = np.nonzero(slots_BE[b])[0]
        item_QK = _scan(view, filters[b], embeddings.e_BED[b, at_Q], depth * requests[b].k)
        found = Found(np.full(len(at_Q), b), at_Q, item_QK)
        lists[b] = _filled(view, embeddings, slots_BE, found, filters, depth)[b]
    return lists


def _filled(
    view: View,
    embeddings: Embeddings,
    slots_BE: np.ndarray,
    found: Found,
    filters: Sequence[Filter],
    depth: int,
) -> dict[int, list[Candidate]]:
    """The lists of all requests that were searched for, as far as what was found fills them; by request."""
    pools = Pools.of(embeddings.outcome_BE, slots_BE, found)
    asked = pools.requests
    may_M = pools.admitted(view, [filters[b].hashes for b in asked])
    for b in asked:
        if filters[b].rows is not None:
            mine = pools.of_request(b)
            may_M[mine] &= filters[b].left(view)[pools.row_M[mine]]
    taken = pools.filled(view, may_M, embeddings.e_BED, embeddings.outcome_BE, slots_BE, depth)
    lists: dict[int, list[Candidate]] = {b: [] for b in asked}
    for b, candidate in _candidates(view, embeddings, taken):
        lists[b].append(candidate)
    return lists


def _scan(view: View, only: Filter, q_QD: np.ndarray, depth: int) -> np.ndarray:
    """int64[Q, K]: the exact best `depth` rows that the filter leaves.

    With `depth` as many as are wanted in all, every embedding still has enough after the others have taken theirs.
    """
    rows = np.nonzero(only.left(view))[0]
    score_QN = q_QD @ view.vectors(rows).T
    depth = min(depth, len(rows))
    best_QK = np.argpartition(-score_QN, max(depth - 1, 0), axis=1)[:, :depth] if depth else score_QN.astype(np.int64)
    return rows[best_QK]


def _candidates(view: View, embeddings: Embeddings, taken: Taken) -> Iterator[tuple[int, Candidate]]:
    """The items that were taken, each behind its request, and what was aimed at when it was found."""
    names = [*(action.name for action in view.bundle.vocabulary.actions), None]  # the last is that of ANY
    rows = taken.row_N.tolist()
    columns = (
        rows,
        view.item_ids(rows),
        taken.score_N.tolist(),
        [names[outcome] for outcome in embeddings.outcome_BE[taken.request_N, taken.at_N].tolist()],
        [None if math.isnan(offset_s) else offset_s for offset_s in embeddings.offset_E[taken.at_N].tolist()],
        embeddings.step_E[taken.at_N].tolist(),
    )
    return zip(taken.request_N.tolist(), map(Candidate, *columns), strict=True)
