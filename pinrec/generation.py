"""From histories to lists: encode, generate embeddings, split the budget, search, filter, and rank where asked to.

Every stage takes a whole batch. Shape suffixes: B requests, L events, E embeddings of a request in generation
order (step, then outcome, then offset), Q embeddings that are searched, K results of a search, D width, C candidates
of a request that are ranked, O engaging actions.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from torch import Tensor

from pinrec.backbone import KVCache
from pinrec.budget import compress, normalised, slots, spread
from pinrec.config import GenerationConfig
from pinrec.hashing import hash_id
from pinrec.history import History
from pinrec.items import query_bag
from pinrec.model import PinRecModel, as_int64, previous_timestamps

if TYPE_CHECKING:
    from pinrec.bundle import Bundle

ANY: Final = -1
"""The index of "no outcome", "any surface" and "any offset" in the head, and of "no row"."""
# A search costs about the same for 32 results as for 8, and with 8 most users' seen items would call for a second one.
_SHALLOWEST: Final = 32
_DEEPEST: Final = 2_048
# Categories of no more rows than this are scanned: cheaper than to search on until enough of them turn up.
_SCANNED_ROWS: Final = 5_000
_SCANNED_SHARE: Final = 1 / 64
_RANKED: Final = 512  # candidates of a request that are ranked at once: what bounds the memory it takes


class RequestError(ValueError):
    """A request that cannot be answered; `field` is at fault and `remedy` says what to send instead."""

    def __init__(self, field: str, remedy: str) -> None:
        super().__init__(f"{field}: {remedy}")
        self.field, self.remedy = field, remedy


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One list to make.

    Attributes:
        history: the user's events; may be None or empty only where there is a context.
        k: items wanted.
        now: epoch seconds.
        outcomes: budget by outcome name; None = the configured or trained shares.
        surface: vocabulary index of where the list is shown; None = any.
        context_item: the item the user looks at; it is never in the list.
        context_query: what the user searches for.
        exclude: item ids that must not come back.
        exclude_seen: leave out every item of the history.
        categories: if any, an item must be in at least one of them.
    """

    history: History | None
    k: int
    now: float
    outcomes: dict[str, float] | None = None
    surface: int | None = None
    context_item: str | None = None
    context_query: str | None = None
    exclude: frozenset[str] = frozenset()
    exclude_seen: bool = True
    categories: frozenset[str] = frozenset()


@dataclass(slots=True)
class Candidate:
    """One item of a list and the embedding that found it; nulls where nothing was aimed at.

    Attributes:
        row: of the catalogue.
        score: inner product with the embedding, of -1 to 1, or with several embeddings of the outcome the soft maximum
            of theirs (`_Aims.of`). Where the ranking head ordered the list, the probabilities
            that the item, once shown, meets with each outcome of the request, weighed by their shares: 0 to 1. In a
            list of popular items 1 / rank.
        outcome: name of the outcome aimed at.
        offset_s: seconds from now aimed at.
        step: decode step, from 0.
    """

    row: int
    item_id: str
    score: float
    outcome: str | None = None
    offset_s: float | None = None
    step: int | None = None


@dataclass(frozen=True, slots=True)
class Encoded:
    """B histories, encoded.

    Attributes:
        h_BD: state at each last event.
        cache: keys and values; decoding lengthens it in place, `cache.rewind` undoes that.
        last_B: float64, timestamp of each last event.
        surface_B: int64, surface of each last event.
    """

    h_BD: Tensor
    cache: KVCache
    last_B: Tensor
    surface_B: Tensor


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


def check(request: GenerationRequest, config: GenerationConfig) -> None:
    """Refuse what cannot be generated for.

    Raises:
        RequestError: k out of range, or neither history nor context.
    """
    if not 1 <= request.k <= config.max_k:
        raise RequestError("k", f"must be from 1 to {config.max_k}, not {request.k}")
    if not request.history and request.context_item is None and request.context_query is None:
        raise RequestError("history", "is empty; answer unknown users with popular items")


def generate(
    bundle: "Bundle", requests: Sequence[GenerationRequest], config: GenerationConfig
) -> list[list[Candidate]]:
    """Lists of up to k items each: exactly k distinct ones wherever the filters leave k.

    Outcomes take turns by their shares, so that the head of a list keeps to the budget too. Within an outcome the best
    score comes first: with `config.rerank` and a model with a ranking head that of the head.

    Raises:
        RequestError: see `check`.
        BudgetError: see `normalised`.
    """
    if not requests:
        return []
    if not config.rerank or bundle.model.ranking is None:
        return retrieve(bundle, requests, embed(bundle, requests, config), config)
    for request in requests:
        check(request, config)
    encoded = encode(bundle, requests)
    length_B = encoded.cache.length_B
    embeddings = embed(bundle, requests, config, encoded)
    encoded.cache.rewind(length_B)
    return _reranked(bundle, requests, _pools(bundle, requests, embeddings, config, config.rerank), config, encoded)


@torch.inference_mode()
def encode(bundle: "Bundle", requests: Sequence[GenerationRequest]) -> Encoded:
    """Prefill the histories, each followed by its request's context as a virtual last event."""
    events = _Events(bundle, requests)
    x_BLD = bundle.model.tokens(
        torch.from_numpy(events.item_BLD),
        torch.from_numpy(events.action_BL),
        torch.from_numpy(events.surface_BL),
        timestamp_BL := torch.from_numpy(events.timestamp_BL),
        previous_timestamps(timestamp_BL),
    )
    length_B = torch.from_numpy(events.length_B)
    h_BLD, cache = bundle.model.prefill(x_BLD, length_B)
    row_B, last_B = torch.arange(len(requests)), length_B - 1
    return Encoded(
        h_BLD[row_B, last_B], cache, timestamp_BL[row_B, last_B], torch.from_numpy(events.surface_BL)[row_B, last_B]
    )


@torch.inference_mode()
def embed(
    bundle: "Bundle",
    requests: Sequence[GenerationRequest],
    config: GenerationConfig,
    encoded: Encoded | None = None,
) -> Embeddings:
    """Generate outcomes x offsets embeddings in each of `config.steps` steps.

    Only the immediate next one (the largest share's outcome, the nearest offset) is fed back as the next token.

    Args:
        encoded: of these requests, if the caller has it; its cache grows by steps - 1.
    """
    for request in requests:
        check(request, config)
    shares = [_shares(bundle, request, config) for request in requests]
    encoded = encode(bundle, requests) if encoded is None else encoded
    model, conditioned = bundle.model, config.mode != "unconditioned"
    offsets = np.array(model.config.offsets_s if config.mode == "multi_token" else (math.nan,))
    nearest = int(offsets.argmin()) if config.mode == "multi_token" else 0
    aims = _outcomes(bundle, shares)
    outcome_BE = np.repeat(aims if conditioned else np.full((len(requests), 1), ANY), len(offsets), axis=1)
    surface_B, next_surface_B, now_B = _moment(requests, encoded)
    surface_BE = (surface_B if conditioned else torch.full_like(surface_B, ANY))[:, None].expand(outcome_BE.shape)
    h_BD, last_B, steps = encoded.h_BD, encoded.last_B, []
    for step in range(config.steps):
        offset_BE = _offsets(offsets, now_B - last_B, outcome_BE.shape[1], model.config.max_offset_s)
        e_BED = model.head(h_BD, torch.from_numpy(outcome_BE), surface_BE, offset_BE)
        steps.append(e_BED)
        if step + 1 < config.steps:
            x_BD = model.tokens(e_BED[:, nearest], torch.from_numpy(aims[:, 0].copy()), next_surface_B, now_B, last_B)
            h_BD, last_B = model.decode(x_BD, encoded.cache), now_B
    every_step_BE = np.tile(outcome_BE, config.steps)
    return Embeddings(
        e_BED=torch.cat(steps, 1).numpy(),
        outcome_BE=every_step_BE,
        offset_E=np.tile(offsets, config.steps * outcome_BE.shape[1] // len(offsets)),
        step_E=np.repeat(np.arange(config.steps), outcome_BE.shape[1]),
        slots_BE=_slots(bundle, requests, shares if conditioned else None, every_step_BE),
    )


def _moment(requests: Sequence[GenerationRequest], encoded: Encoded) -> tuple[Tensor, Tensor, Tensor]:
    """Surfaces asked for (ANY among them), surfaces the next events are taken to be on, and times of these."""
    surface_B = torch.tensor([ANY if request.surface is None else request.surface for request in requests])
    now_B = torch.tensor([request.now for request in requests], dtype=torch.float64)
    return surface_B, surface_B.where(surface_B != ANY, encoded.surface_B), torch.maximum(now_B, encoded.last_B)


def _shares(bundle: "Bundle", request: GenerationRequest, config: GenerationConfig) -> dict[str, float]:
    wanted = config.default_outcomes or bundle.outcomes if request.outcomes is None else request.outcomes
    return normalised(wanted, bundle.vocabulary)


def _outcomes(bundle: "Bundle", shares: Sequence[dict[str, float]]) -> np.ndarray:
    """int64[B, O]: each row's outcomes, largest share first; -1 behind a row's last."""
    aims = np.full((len(shares), max(map(len, shares))), ANY, np.int64)
    for row, names in zip(aims, shares, strict=True):
        row[: len(names)] = [bundle.vocabulary.action_index[name] for name in names]
    return aims


def _offsets(offsets: np.ndarray, pause_B: Tensor, embeddings: int, longest_s: float) -> Tensor:
    """float32[B, E]: seconds from each last event, as offsets count from now; -1 where none is aimed at."""
    if np.isnan(offsets).any():
        return torch.full((len(pause_B), embeddings), float(ANY))
    offset_E = torch.from_numpy(np.tile(offsets, embeddings // len(offsets)))
    return (pause_B.clamp(0, longest_s)[:, None] + offset_E).clamp(max=longest_s).float()


def _slots(
    bundle: "Bundle",
    requests: Sequence[GenerationRequest],
    shares: Sequence[dict[str, float]] | None,
    outcome_BE: np.ndarray,
) -> np.ndarray:
    """int64[B, E]: k places over outcomes by their shares, then evenly over each outcome's embeddings."""
    slots_BE = np.zeros(outcome_BE.shape, np.int64)
    for b, request in enumerate(requests):
        if shares is None:
            slots_BE[b] = spread(request.k, outcome_BE.shape[1])
            continue
        for name, places in zip(shares[b], slots(list(shares[b].values()), request.k), strict=True):
            mine_E = outcome_BE[b] == bundle.vocabulary.action_index[name]
            slots_BE[b, mine_E] = spread(places, int(mine_E.sum()))
    return slots_BE


class _Events:
    """Histories and contexts as right-padded arrays [B, L]."""

    def __init__(self, bundle: "Bundle", requests: Sequence[GenerationRequest]) -> None:
        self._bundle = bundle
        config, vocabulary = bundle.model.config, bundle.vocabulary
        searching = vocabulary.action_index.get("search", 0)
        engaging = min(vocabulary.engaging)
        kept = [min(len(request.history or ()), config.history) for request in requests]
        context = [(r.context_item is not None) + (r.context_query is not None) for r in requests]
        self.length_B = np.add(kept, context, dtype=np.int64)
        shape = len(requests), int(self.length_B.max())
        self.item_BLD = np.zeros((*shape, config.width), np.float32)
        self.action_BL, self.surface_BL = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        self.timestamp_BL = np.zeros(shape, np.float64)
        hash_BL, is_item_BL = np.zeros(shape, np.uint64), np.zeros(shape, np.bool_)
        queries: list[tuple[int, int, str]] = []
        for b, request in enumerate(requests):
            n, last, surface = kept[b], request.now, 0
            if request.history and n:
                rows = request.history.rows[-n:]
                hash_BL[b, :n], is_item_BL[b, :n] = rows["item_hash"], rows["is_query"] == 0
                self.action_BL[b, :n], self.surface_BL[b, :n] = rows["action"], rows["surface"]
                self.timestamp_BL[b, :n] = rows["timestamp"]
                last, surface = max(last, float(rows["timestamp"][-1])), int(rows["surface"][-1])
                if rows["is_query"].any():
                    texts = request.history.item_ids[-n:]
                    queries += [(b, int(at), texts[at]) for at in np.nonzero(rows["is_query"])[0]]
            self.timestamp_BL[b, n : n + context[b]] = last
            self.surface_BL[b, n : n + context[b]] = surface if request.surface is None else request.surface
            if request.context_query is not None:
                queries.append((b, n, request.context_query))
                self.action_BL[b, n] = searching
                n += 1
            if request.context_item is not None:
                hash_BL[b, n], is_item_BL[b, n] = hash_id(request.context_item), True
                self.action_BL[b, n] = engaging
        self.item_BLD[is_item_BL] = item_vectors(bundle, hash_BL[is_item_BL])
        if queries:
            bags = np.stack([query_bag(text, config) for _, _, text in queries])
            row, at, _ = zip(*queries, strict=True)
            self.item_BLD[row, at] = bundle.model.query_vectors(torch.from_numpy(bags)).numpy()


@torch.inference_mode()
def item_vectors(bundle: "Bundle", hash_N: np.ndarray) -> np.ndarray:
    """float32[N, D]: rows of the item table, and for items it does not hold the tower on their hash alone."""
    row_N = bundle.catalogue.rows(hash_N)
    x_ND: np.ndarray = bundle.table[np.maximum(row_N, 0)]
    unknown = np.nonzero(row_N < 0)[0]
    if len(unknown):
        x_ND[unknown] = _from_hash(bundle.model, hash_N[unknown])
    return x_ND


def _from_hash(model: PinRecModel, hash_N: np.ndarray) -> np.ndarray:
    n = len(hash_N)
    return model.item_vectors(
        as_int64(hash_N),
        torch.zeros(n, model.config.bag_size, dtype=torch.int32),
        torch.zeros(n, model.config.content_width),
        torch.zeros(n, dtype=torch.bool),
    ).numpy()


@dataclass(frozen=True, slots=True)
class _Filter:
    """What one request refuses.

    Attributes:
        refused: rows that must not come back.
        rows: the only rows that may, sorted; None = all.
    """

    refused: frozenset[int]
    rows: np.ndarray | None

    @classmethod
    def of(cls, bundle: "Bundle", request: GenerationRequest) -> "_Filter":
        hashes = [hash_id(item_id) for item_id in request.exclude]
        if request.context_item is not None:
            hashes.append(hash_id(request.context_item))
        if request.exclude_seen and request.history:
            events = request.history.rows
            hashes += events["item_hash"][events["is_query"] == 0].tolist()
        refused = bundle.catalogue.rows(np.array(hashes, np.uint64)).tolist() if hashes else ()
        rows = bundle.category_rows(request.categories) if request.categories else None
        return cls(frozenset(refused) - {ANY}, rows)

    def left(self, items: int) -> np.ndarray:
        """bool[items]: which rows may come back."""
        left = np.full(items, self.rows is None)
        if self.rows is not None:
            left[self.rows] = True
        if self.refused:
            left[list(self.refused)] = False
        return left


def retrieve(
    bundle: "Bundle", requests: Sequence[GenerationRequest], embeddings: Embeddings, config: GenerationConfig
) -> list[list[Candidate]]:
    """Search the index with all embeddings at once and fill every list."""
    return _pools(bundle, requests, embeddings, config, 1)


def _pools(
    bundle: "Bundle",
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
    filters = [_Filter.of(bundle, request) for request in requests]
    found: list[list[Candidate]] = [[] for _ in requests]
    few = max(_SCANNED_ROWS, int(_SCANNED_SHARE * len(bundle.index)))
    scanned = {b for b, only in enumerate(filters) if only.rows is not None and len(only.rows) <= few}
    pending = [b for b in range(len(requests)) if b not in scanned]
    fetch = max(_SHALLOWEST, math.ceil(config.overfetch * depth * int(slots_BE.max())))
    while pending:
        fetch = min(fetch, len(bundle.index))
        row_Q, at_Q = np.nonzero(slots_BE[pending])
        request_Q = np.array(pending)[row_Q]
        score_QK, item_QK = bundle.index.search(embeddings.e_BED[request_Q, at_Q], fetch)
        start = np.searchsorted(row_Q, np.arange(len(pending) + 1))
        short = []
        for i, b in enumerate(pending):
            mine = slice(start[i], start[i + 1])
            aims = _Aims.of(bundle, embeddings, b, at_Q[mine], slots_BE[b], score_QK[mine], item_QK[mine])
            taken = _fill(aims, filters[b], len(bundle.table), depth)
            if len(taken) < requests[b].k:
                short.append(b)
            else:
                found[b] = _candidates(bundle, embeddings, b, taken)
        if fetch >= min(len(bundle.index), _DEEPEST):
            scanned.update(short)
            break
        pending, fetch = short, 2 * fetch
    for b in scanned:
        at_Q = np.nonzero(slots_BE[b])[0]
        score_QK, item_QK = _scan(bundle, filters[b], embeddings.e_BED[b, at_Q], depth * requests[b].k)
        aims = _Aims.of(bundle, embeddings, b, at_Q, slots_BE[b], score_QK, item_QK)
        taken = _fill(aims, filters[b], len(bundle.table), depth)
        found[b] = _candidates(bundle, embeddings, b, taken)
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
        bundle: "Bundle",
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
        temperature = float(bundle.model.temperature)
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
            fit_GK = embeddings.e_BED[b, at_Q[group]] @ bundle.table[row_K].T
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


def _fill(aims: _Aims, only: _Filter, items: int, depth: int) -> list[tuple[int, int, float]]:
    """(embedding, row, score): outcomes take turns by their places, and each takes the best item that is left for it.

    Taking turns matters where outcomes want the same items: by score alone, one of them would take all of the best and
    leave the other what nobody wants. Once every place is filled, each outcome takes `depth` - 1 further items for
    each of its places.
    """
    gone = {ANY, *only.refused}
    left = only.left(items) if only.rows is not None else None
    queues = []
    for item_K, score_K, at_K in zip(aims.item_AK, aims.score_AK, aims.at_AK, strict=True):
        order = np.argsort(-score_K, kind="stable")
        if left is not None:
            order = order[left[item_K[order]]]
        queues.append(zip(at_K[order].tolist(), item_K[order].tolist(), score_K[order].tolist(), strict=True))
    taken: list[tuple[int, int, float]] = []
    for more in (1, depth - 1):
        for aim in _turns((more * aims.places_A).tolist()):
            found = next((found for found in queues[aim] if found[1] not in gone), None)
            if found is None:
                return taken
            gone.add(found[1])
            taken.append(found)
    return taken


def _turns(places: Sequence[int]) -> list[int]:
    """Which of the outcomes is next, for all of their places: any head of the list holds each one's share, within one.

    The j-th of an outcome's n stands at (j + 1/2) / n of the list.
    """
    at = [((j + 0.5) / n, -n, aim) for aim, n in enumerate(places) for j in range(n)]
    return [aim for _, _, aim in sorted(at)]


def _scan(bundle: "Bundle", only: _Filter, q_QD: np.ndarray, depth: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores and rows [Q, K] of the exact best `depth` that the filter leaves.

    With `depth` as many as are wanted in all, every embedding still has enough after the others have taken theirs.
    """
    rows = np.nonzero(only.left(len(bundle.table)))[0]
    score_QN = q_QD @ bundle.table[rows].T
    depth = min(depth, len(rows))
    best_QK = np.argpartition(-score_QN, max(depth - 1, 0), axis=1)[:, :depth] if depth else score_QN.astype(np.int64)
    return np.take_along_axis(score_QN, best_QK, axis=1), rows[best_QK]


def _candidates(
    bundle: "Bundle", embeddings: Embeddings, b: int, taken: Sequence[tuple[int, int, float]]
) -> list[Candidate]:
    """What one request's places were filled with, and why, in the same order."""
    named = []
    for at, row, score in taken:
        outcome, offset_s = int(embeddings.outcome_BE[b, at]), float(embeddings.offset_E[at])
        named.append(
            Candidate(
                row=row,
                item_id=bundle.catalogue.item_ids[row],
                score=score,
                outcome=None if outcome == ANY else bundle.vocabulary.actions[outcome].name,
                offset_s=None if math.isnan(offset_s) else offset_s,
                step=int(embeddings.step_E[at]),
            )
        )
    return named


def _interleaved(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The candidates of each outcome, which keep their order, spread over the list by how many there are."""
    groups: dict[str | None, list[Candidate]] = {}
    for candidate in candidates:
        groups.setdefault(candidate.outcome, []).append(candidate)
    members = list(groups.values())
    turns = _turns([len(group) for group in members])
    queues = [iter(group) for group in members]
    return [next(queues[turn]) for turn in turns]


@torch.inference_mode()
def rank(
    bundle: "Bundle",
    requests: Sequence[GenerationRequest],
    rows: Sequence[np.ndarray],
    config: GenerationConfig,
    encoded: Encoded | None = None,
) -> list[np.ndarray]:
    """The ranking head's score of items, for each request; see `Candidate.score`.

    Args:
        rows: int64[C] for each request, rows of the catalogue; their order and company change no score.
        encoded: of these requests, if the caller has it, without decoded steps; it stays as it is.

    Returns:
        float32[C] for each request.

    Raises:
        ValueError: the model has no ranking head.
    """
    model = bundle.model
    if model.ranking is None:
        raise ValueError("ranking: this model was trained without a ranking head; train one with model.ranking")
    encoded = encode(bundle, requests) if encoded is None else encoded
    _, surface_B, now_B = _moment(requests, encoded)
    row_BC = np.zeros((len(rows), max(map(len, rows), default=0)), np.int64)
    share_BO = torch.zeros(len(rows), len(bundle.vocabulary.outcomes))
    for b, request in enumerate(requests):
        row_BC[b, : len(rows[b])] = rows[b]
        shares = _shares(bundle, request, config)
        share_BO[b] = torch.tensor([shares.get(name, 0.0) for name in bundle.vocabulary.outcomes])
    score_BC = np.zeros(row_BC.shape, np.float32)
    for at in range(0, row_BC.shape[1], _RANKED):
        some = slice(at, at + _RANKED)
        item_BCD = torch.from_numpy(bundle.table[row_BC[:, some]])
        logit_BCO = model.rank(item_BCD, surface_B[:, None], now_B[:, None], encoded.last_B[:, None], encoded.cache)
        score_BC[:, some] = torch.einsum("bco,bo->bc", logit_BCO.sigmoid(), share_BO).numpy()
    return [score_C[: len(mine)] for score_C, mine in zip(score_BC, rows, strict=True)]


def _reranked(
    bundle: "Bundle",
    requests: Sequence[GenerationRequest],
    pools: Sequence[list[Candidate]],
    config: GenerationConfig,
    encoded: Encoded,
) -> list[list[Candidate]]:
    """Lists of the best of each pool; every outcome keeps the places that it has among the pool's first k."""
    lists = []
    rows = [np.array([candidate.row for candidate in pool], np.int64) for pool in pools]
    scores = rank(bundle, requests, rows, config, encoded)
    for request, pool, score_C in zip(requests, pools, scores, strict=True):
        places, best = Counter(candidate.outcome for candidate in pool[: request.k]), []
        for at in np.argsort(-score_C, kind="stable").tolist():
            candidate = pool[at]
            if places[candidate.outcome]:
                places[candidate.outcome] -= 1
                candidate.score = float(score_C[at])
                best.append(candidate)
        lists.append(_interleaved(best))
    return lists


def popular(bundle: "Bundle", request: GenerationRequest, fresh_every: int = 5) -> list[Candidate]:
    """A list for whom nothing is known of: popular items, every `fresh_every`-th a new one, best first.

    The filters are those of `generate`; k distinct items wherever they leave k.
    """
    only = _Filter.of(bundle, request)
    items = len(bundle.catalogue)
    ranked = bundle.popularity.cold_start(request.surface, items, fresh_every)
    others = np.setdiff1d(np.arange(items), ranked) if len(ranked) < items else ranked[:0]
    rows = np.concatenate((ranked, others))
    rows = rows[only.left(items)[rows]][: request.k]
    # The score orders the list and means nothing else: popularity and newness share no scale.
    return [Candidate(row, bundle.catalogue.item_ids[row], 1 / (1 + at)) for at, row in enumerate(rows.tolist())]
