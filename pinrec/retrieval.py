"""From embeddings to lists: search, filter, and share the places out.

Shape suffixes: B requests, E embeddings of a request in generation order (step, then outcome, then offset), Q
embeddings that are searched, A outcomes of a request, K results of a search, D width, N items.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from pinrec.budget import compress
from pinrec.config import GenerationConfig
from pinrec.delta import Delta, View
from pinrec.hashing import hash_id
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
        refused: rows that must not come back.
        rows: the only rows that may, sorted; None = all.
    """

    refused: frozenset[int]
    rows: np.ndarray | None

    @classmethod
    def of(cls, view: View, request: GenerationRequest) -> "Filter":
        """That of a request."""
        hashes = [hash_id(item_id) for item_id in request.exclude]
        if request.context_item is not None:
            hashes.append(hash_id(request.context_item))
        if request.exclude_seen and request.history:
            events = request.history.rows
            hashes += events["item_hash"][events["is_query"] == 0].tolist()
        refused = view.rows(np.array(hashes, np.uint64)).tolist() if hashes else ()
        rows = view.category_rows(request.categories) if request.categories else None
        return cls(frozenset(refused) - {ANY}, rows)

    def left(self, view: View) -> np.ndarray:
        """bool[len(view)]: which rows may come back."""
        left = np.full(len(view), self.rows is None)
        if self.rows is not None:
            left[self.rows] = True
        if self.refused:
            left[list(self.refused)] = False
        view.exclude_gone(left)
        return left


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
    found: list[list[Candidate]] = [[] for _ in requests]
    few = max(_SCANNED_ROWS, int(_SCANNED_SHARE * len(view)))
    scanned = {b for b, only in enumerate(filters) if only.rows is not None and len(only.rows) <= few}
    pending = [b for b in range(len(requests)) if b not in scanned]
    fetch = max(_SHALLOWEST, math.ceil(config.overfetch * depth * int(slots_BE.max())))
    while pending:
        fetch = min(fetch, len(view))
        row_Q, at_Q = np.nonzero(slots_BE[pending])
        request_Q = np.array(pending)[row_Q]
        score_QK, item_QK = view.search(embeddings.e_BED[request_Q, at_Q], fetch)
        start = np.searchsorted(row_Q, np.arange(len(pending) + 1))
        short = []
        for i, b in enumerate(pending):
            mine = slice(start[i], start[i + 1])
            aims = _Aims.of(view, embeddings, b, at_Q[mine], slots_BE[b], score_QK[mine], item_QK[mine])
            taken = _fill(aims, filters[b], view, depth)
            if len(taken) < requests[b].k:
                short.append(b)
            else:
                found[b] = _candidates(view, embeddings, b, taken)
        if fetch >= min(len(view), _DEEPEST):
            scanned.update(short)
            break
        pending, fetch = short, 2 * fetch
    for b in scanned:
        at_Q = np.nonzero(slots_BE[b])[0]
        score_QK, item_QK = _scan(view, filters[b], embeddings.e_BED[b, at_Q], depth * requests[b].k)
        aims = _Aims.of(view, embeddings, b, at_Q, slots_BE[b], score_QK, item_QK)
        taken = _fill(aims, filters[b], view, depth)
        found[b] = _candidates(view, embeddings, b, taken)
    return found


@dataclass(frozen=True, slots=True)
class _Aims:
    """What the search found for each of a request's A outcomes (or for none), and how many places each has.

    Attributes:
        places_A: int64, places of each outcome.
        item_AK: rows found, -1 behind the last.
        score_AK: how well each fits the outcome's embeddings together (`of`).
        at_AK: the embedding that fits it best, in generation order.
    """

    places_A: np.ndarray
    item_AK: np.ndarray
    score_AK: np.ndarray
    at_AK: np.ndarray

    @classmethod
    def of(
        cls,
        view: View,
        embeddings: Embeddings,
        b: int,
        at_Q: np.ndarray,
        slots_E: np.ndarray,
        score_QK: np.ndarray,
        item_QK: np.ndarray,
    ) -> "_Aims":
        """Pool what each outcome's embeddings found, and score it by all of them.

        The embeddings of an outcome differ in step and time offset: each predicts what comes then. With the temperature
        t and weights w_e by their places, an item's score is t log sum_e w_e exp(<e, x> / t): a soft maximum of the
        inner products, and the inner product of a lone embedding.
        """
        outcome_Q = embeddings.outcome_BE[b, at_Q]
        groups = [np.nonzero(outcome_Q == outcome)[0] for outcome in dict.fromkeys(outcome_Q.tolist())]
        temperature = float(view.bundle.model.temperature)
        rows, scores, best = [], [], []
        for group in groups:
            if len(group) == 1:
                rows.append(item_QK[group[0]])
                scores.append(score_QK[group[0]])
                best.append(np.full(len(rows[-1]), at_Q[group[0]]))
                continue
            row_K = np.unique(item_QK[group])
            row_K = row_K[row_K != ANY]
            weight_G = slots_E[at_Q[group]] / slots_E[at_Q[group]].sum()
            fit_GK = embeddings.e_BED[b, at_Q[group]] @ view.vectors(row_K).T
            top_K = fit_GK.max(0)
            mean_K = weight_G @ np.exp((fit_GK - top_K) / temperature)
            rows.append(row_K)
            scores.append(top_K + temperature * np.log(mean_K))
            best.append(at_Q[group[fit_GK.argmax(0)]])
        shape = len(groups), max((len(row_K) for row_K in rows), default=0)
        item_AK, score_AK, at_AK = np.full(shape, ANY), np.full(shape, -np.inf), np.zeros(shape, np.int64)
        for a, (row_K, score_K, at_K) in enumerate(zip(rows, scores, best, strict=True)):
            item_AK[a, : len(row_K)], score_AK[a, : len(row_K)], at_AK[a, : len(row_K)] = row_K, score_K, at_K
        places_A = np.array([slots_E[at_Q[group]].sum() for group in groups], np.int64)
        return cls(places_A, item_AK, score_AK, at_AK)


def _fill(aims: _Aims, only: Filter, view: View, depth: int) -> list[tuple[int, int, float]]:
    """(embedding, row, score): outcomes take turns by their places, and each takes the best item that is left for it.

    Taking turns matters where outcomes want the same items: by score alone, one of them would take all of the best and
    leave the other what nobody wants. Once every place is filled, each outcome takes `depth` - 1 further items for
    each of its places.
    """
    gone = {ANY, *only.refused}
    left = only.left(view) if only.rows is not None else None
    queues = []
    for item_K, score_K, at_K in zip(aims.item_AK, aims.score_AK, aims.at_AK, strict=True):
        order = np.argsort(-score_K, kind="stable")
        if left is not None:
            order = order[left[item_K[order]]]
        queues.append(zip(at_K[order].tolist(), item_K[order].tolist(), score_K[order].tolist(), strict=True))
    taken: list[tuple[int, int, float]] = []
    for more in (1, depth - 1):
        for aim in turns((more * aims.places_A).tolist()):
            found = next((found for found in queues[aim] if found[1] not in gone), None)
            if found is None:
                return taken
            gone.add(found[1])
            taken.append(found)
    return taken


def turns(places: Sequence[int]) -> list[int]:
    """Which of the outcomes is next, for all of their places: any head of the list holds each one's share, within one.

    The j-th of an outcome's n stands at (j + 1/2) / n of the list.
    """
    at = [((j + 0.5) / n, -n, aim) for aim, n in enumerate(places) for j in range(n)]
    return [aim for _, _, aim in sorted(at)]


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
    """What one request's places were filled with, and why, in the same order."""
    named = []
    for at, row, score in taken:
        outcome, offset_s = int(embeddings.outcome_BE[b, at]), float(embeddings.offset_E[at])
        named.append(
            Candidate(
                row=row,
                item_id=view.item_id(row),
                score=score,
                outcome=None if outcome == ANY else view.bundle.vocabulary.actions[outcome].name,
                offset_s=None if math.isnan(offset_s) else offset_s,
                step=int(embeddings.step_E[at]),
            )
        )
    return named
