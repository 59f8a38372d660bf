"""From histories to lists: encode, generate embeddings, split the budget, search, filter, and rank where asked to.

Every stage takes a whole batch. Shape suffixes: B requests, L events, E embeddings of a request in generation
order (step, then outcome, then offset), Q embeddings that are searched, K results of a search, D width, C candidates
of a request that are ranked, O engaging actions.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from torch import Tensor

from pinrec.backbone import KVCache
from pinrec.budget import aims_of_steps, normalised, places
from pinrec.config import GenerationConfig
from pinrec.delta import Delta, View
from pinrec.encoding import Encoded, Encoder, encode, from_scratch
from pinrec.exploration import explored
from pinrec.fused import FusedModel
from pinrec.hashing import hash_id
from pinrec.model import PinRecModel
from pinrec.pooling import turns
from pinrec.requests import ANY, Candidate, GenerationRequest, check
from pinrec.retrieval import Embeddings, Filter, pools, retrieve

if TYPE_CHECKING:
    from pinrec.bundle import Bundle

_RANKED: Final = 512  # candidates of a request that are ranked at once: what bounds the memory it takes


def generate(
    bundle: "Bundle",
    requests: Sequence[GenerationRequest],
    config: GenerationConfig,
    encoder: Encoder = from_scratch,
    delta: Delta | None = None,
) -> list[list[Candidate]]:
    """Lists of up to k items each: exactly k distinct ones wherever the filters leave k.

    Outcomes take turns by their shares, so that the head of a list keeps to the budget too. Within an outcome the best
    score comes first: with `config.rerank` and a model with a ranking head that of the head.

    Args:
        encoder: encodes the histories; `pinrec.states.UserStates` does so without what it has kept of them.
        delta: what happened to the catalogue since. Histories are encoded by the bundle alone, so that what is kept of
            them stays valid; a context's item is taken as it is now.

    Raises:
        RequestError: see `check`.
        BudgetError: see `normalised`.
    """
    if not requests:
        return []
    for request in requests:
        check(request, config)
    view = View(bundle, delta)
    if delta is not None:
        requests = [_with_late_context(view, request) for request in requests]
    shares = _all_shares(bundle, requests, config)
    parts = [
        _Part(index, [requests[b] for b in index], [shares[b] for b in index], encoded)
        for index, encoded in encoder(bundle, requests)
    ]
    lengths = [part.encoded.cache.length_B for part in parts]
    embeddings = _joined(parts, [_embed(bundle, part, max(map(len, shares)), config) for part in parts])
    if not config.rerank or bundle.model.ranking is None:
        return explored(view, requests, retrieve(bundle, requests, embeddings, config, delta), config)
    for part, length_B in zip(parts, lengths, strict=True):
        part.encoded.cache.rewind(length_B)
    ranked = _reranked(view, requests, pools(view, requests, embeddings, config, config.rerank), config, parts)
    return explored(view, requests, ranked, config)


def _with_late_context(view: View, request: GenerationRequest) -> GenerationRequest:
    vector = None if request.context_item is None else view.late_vector(request.context_item)
    return request if vector is None else replace(request, context_vector=vector)


@dataclass(frozen=True, slots=True)
class _Part:
    """Requests of a batch that are encoded together, by their numbers in it."""

    index: list[int]
    requests: list[GenerationRequest]
    shares: list[dict[str, float]]
    encoded: Encoded


def _joined(parts: Sequence[_Part], embeddings: Sequence[Embeddings]) -> Embeddings:
    """The embeddings of a whole batch, in its order."""
    if len(parts) == 1 and parts[0].index == sorted(parts[0].index):
        return embeddings[0]
    order = np.argsort(np.concatenate([part.index for part in parts]))
    return replace(
        embeddings[0],
        **{
            name: np.concatenate([getattr(some, name) for some in embeddings])[order]
            for name in ("e_BED", "outcome_BE", "slots_BE")
        },
    )


@torch.inference_mode()
def embed(
    bundle: "Bundle",
    requests: Sequence[GenerationRequest],
    config: GenerationConfig,
    encoded: Encoded | None = None,
) -> Embeddings:
    """Generate outcomes x offsets embeddings in each of `config.steps` steps; with `in_turn`, of one outcome in each.

    Only the immediate next one (the step's outcome of the largest share, the nearest offset) is fed back as the next
    token.

    Args:
        encoded: of these requests, if the caller has it; its cache grows by steps - 1.
    """
    for request in requests:
        check(request, config)
    shares = _all_shares(bundle, requests, config)
    encoded = encode(bundle, requests) if encoded is None else encoded
    part = _Part(list(range(len(requests))), list(requests), shares, encoded)
    return _embed(bundle, part, max(map(len, shares)), config)


@torch.inference_mode()
def _embed(bundle: "Bundle", part: _Part, outcomes: int, config: GenerationConfig) -> Embeddings:
    """See `embed`; a row has places for so many outcomes."""
    requests, encoded = part.requests, part.encoded
    model, conditioned = bundle.fused, config.mode != "unconditioned"
    offsets = np.array(model.config.offsets_s if config.mode == "multi_token" else (math.nan,))
    nearest = int(offsets.argmin()) if config.mode == "multi_token" else 0
    aims_SBA = _outcomes(bundle, part.shares, outcomes, config.steps, config.in_turn and conditioned)
    outcome_SBE = np.repeat(aims_SBA if conditioned else np.full_like(aims_SBA[..., :1], ANY), len(offsets), axis=2)
    offset_E = np.concatenate([offsets] * (outcome_SBE.shape[2] // len(offsets)))
    surface_B, next_surface_B, now_B = _moment(requests, encoded)
    e_BED = generated(
        model,
        encoded.h_BD,
        encoded.cache,
        Moment(encoded.last_B, now_B, next_surface_B),
        Aims(
            torch.from_numpy(outcome_SBE),
            surface_B if conditioned else torch.full_like(surface_B, ANY),
            torch.from_numpy(offset_E),
            torch.from_numpy(aims_SBA[:, :, 0].copy()),
            nearest,
        ),
    )
    outcome_BE = np.concatenate(outcome_SBE, 1)
    return Embeddings(
        e_BED=e_BED.numpy(),
        outcome_BE=outcome_BE,
        offset_E=np.concatenate([offset_E] * config.steps),
        step_E=np.repeat(np.arange(config.steps), len(offset_E)),
        slots_BE=_slots(bundle, requests, part.shares if conditioned else None, outcome_BE),
    )


@dataclass(frozen=True, slots=True)
class Moment:
    """When, and where, the next events of B requests are taken to be.

    Attributes:
        last_B, now_B: float64 epoch s of each last event, and of the next ones.
        surface_B: int64, surfaces of the next ones.
    """

    last_B: Tensor
    now_B: Tensor
    surface_B: Tensor


@dataclass(frozen=True, slots=True)
class Aims:
    """What the E embeddings of each of S steps aim at.

    Attributes:
        outcome_SBE: int64, as `PinRecModel.head` takes them.
        surface_B: int64, of all embeddings; as it takes them.
        offset_E: float64, seconds from now; NaN where none is aimed at.
        next_SB: int64, the action that the embedding fed back is taken to meet with.
        fed_back: number of that embedding in a step.
    """

    outcome_SBE: Tensor
    surface_B: Tensor
    offset_E: Tensor
    next_SB: Tensor
    fed_back: int


def generated(model: PinRecModel | FusedModel, h_BD: Tensor, cache: KVCache, moment: Moment, aims: Aims) -> Tensor:
    """The embeddings of all steps one behind the other, float32[B, S E, D], on the model's device.

    Nothing in it asks what a tensor holds, so a GPU runs it as one captured graph.

    Args:
        h_BD: state at each last event.
        cache: of the histories; it grows by S - 1.
    """
    longest_s, last_B, made = model.config.max_offset_s, moment.last_B, []
    steps, surface_BE = len(aims.outcome_SBE), aims.surface_B[:, None].expand(aims.outcome_SBE.shape[1:])
    for step in range(steps):
        # Seconds from each last event, as offsets count from now; -1 where none is aimed at.
        pause_B1 = (moment.now_B - last_B).clamp(0, longest_s)[:, None]
        offset_BE = (pause_B1 + aims.offset_E).clamp(max=longest_s).nan_to_num(float(ANY)).float()
        e_BED = model.head(h_BD, aims.outcome_SBE[step], surface_BE, offset_BE)
        made.append(e_BED)
        if step + 1 < steps:
            x_BD = model.tokens(e_BED[:, aims.fed_back], aims.next_SB[step], moment.surface_B, moment.now_B, last_B)
            h_BD, last_B = model.decode(x_BD, cache), moment.now_B
    return torch.cat(made, 1) if steps > 1 else made[0]


def _moment(requests: Sequence[GenerationRequest], encoded: Encoded) -> tuple[Tensor, Tensor, Tensor]:
    """Surfaces asked for (ANY among them), surfaces the next events are taken to be on, and times of these."""
    # By NumPy: so few numbers take it a third of the time.
    surface_B = np.array([ANY if request.surface is None else request.surface for request in requests])
    next_surface_B = np.where(surface_B != ANY, surface_B, encoded.surface_B.numpy())
    now_B = np.maximum([request.now for request in requests], encoded.last_B.numpy())
    return torch.from_numpy(surface_B), torch.from_numpy(next_surface_B), torch.from_numpy(now_B)


def _shares(bundle: "Bundle", request: GenerationRequest, config: GenerationConfig) -> dict[str, float]:
    wanted = config.default_outcomes or bundle.outcomes if request.outcomes is None else request.outcomes
    return normalised(wanted, bundle.vocabulary)


def _all_shares(
    bundle: "Bundle", requests: Sequence[GenerationRequest], config: GenerationConfig
) -> list[dict[str, float]]:
    """Of each request; the same object for all that leave them to the default."""
    usual = next((_shares(bundle, request, config) for request in requests if request.outcomes is None), {})
    return [usual if request.outcomes is None else _shares(bundle, request, config) for request in requests]


def _outcomes(bundle: "Bundle", shares: Sequence[dict[str, float]], most: int, steps: int, in_turn: bool) -> np.ndarray:
    """int64[S, B, A]: the outcomes that a row aims at in each step, larger shares first; -1 behind the last.

    Args:
        most: outcomes of a row.
        steps, in_turn: see `aims_of_steps`.
    """
    index = bundle.vocabulary.action_index
    different = {id(names): tuple(index[name] for name in names) for names in shares}
    made = {key: _aimed_at(outcomes, most, steps, in_turn) for key, outcomes in different.items()}
    return np.stack([made[id(names)] for names in shares], 1)


@lru_cache(maxsize=1_024)
def _aimed_at(outcomes: tuple[int, ...], most: int, steps: int, in_turn: bool) -> np.ndarray:
    """int64[S, A], of one row; see `_outcomes`."""
    width = aims_of_steps(most, steps, in_turn).shape[1]
    aims_SA = np.array([*outcomes, ANY])[aims_of_steps(len(outcomes), steps, in_turn)]  # -1 is the last: none
    return np.pad(aims_SA, ((0, 0), (0, width - aims_SA.shape[1])), constant_values=ANY)


def _slots(
    bundle: "Bundle",
    requests: Sequence[GenerationRequest],
    shares: Sequence[dict[str, float]] | None,
    outcome_BE: np.ndarray,
) -> np.ndarray:
    """int64[B, E]: k places over outcomes by their shares, then evenly over each outcome's embeddings."""
    index = bundle.vocabulary.action_index
    slots_BE = np.empty(outcome_BE.shape, np.int64)
    made: dict[tuple[int, int], np.ndarray] = {}  # most of a batch leave their shares to the default
    for b, request in enumerate(requests):
        of = id(shares[b]) if shares is not None else 0, request.k
        if of not in made:
            budget = [(ANY, 1.0)] if shares is None else [(index[name], share) for name, share in shares[b].items()]
            made[of] = places(tuple(outcome_BE[b].tolist()), tuple(budget), request.k)
        slots_BE[b] = made[of]
    return slots_BE


def _interleaved(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The candidates of each outcome, which keep their order, spread over the list by how many there are."""
    groups: dict[str | None, list[Candidate]] = {}
    for candidate in candidates:
        groups.setdefault(candidate.outcome, []).append(candidate)
    members = list(groups.values())
    queues = [iter(group) for group in members]
    return [next(queues[turn]) for turn in turns(tuple(len(group) for group in members))]


@torch.inference_mode()
def rank(
    bundle: "Bundle",
    requests: Sequence[GenerationRequest],
    rows: Sequence[np.ndarray],
    config: GenerationConfig,
    encoded: Encoded | None = None,
    delta: Delta | None = None,
) -> list[np.ndarray]:
    """The ranking head's score of items, for each request; see `Candidate.score`.

    Args:
        rows: int64[C] for each request, rows of the catalogue; their order and company change no score.
        encoded: of these requests, if the caller has it, without decoded steps; it stays as it is.
        delta: what happened to the catalogue since; rows behind the catalogue's are its.

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
    view = View(bundle, delta)
    row_BC = np.zeros((len(rows), max(map(len, rows), default=0)), np.int64)
    share_BO = torch.zeros(len(rows), len(bundle.vocabulary.outcomes))
    for b, request in enumerate(requests):
        row_BC[b, : len(rows[b])] = rows[b]
        shares = _shares(bundle, request, config)
        share_BO[b] = torch.tensor([shares.get(name, 0.0) for name in bundle.vocabulary.outcomes])
    score_BC = np.zeros(row_BC.shape, np.float32)
    for at in range(0, row_BC.shape[1], _RANKED):
        some = slice(at, at + _RANKED)
        item_BCD = torch.from_numpy(view.vectors(row_BC[:, some]))
        logit_BCO = model.rank(item_BCD, surface_B[:, None], now_B[:, None], encoded.last_B[:, None], encoded.cache)
        score_BC[:, some] = torch.einsum("bco,bo->bc", logit_BCO.sigmoid(), share_BO).numpy()
    return [score_C[: len(mine)] for score_C, mine in zip(score_BC, rows, strict=True)]


def _reranked(
    view: View,
    requests: Sequence[GenerationRequest],
    pools: Sequence[list[Candidate]],
    config: GenerationConfig,
    parts: Sequence[_Part],
) -> list[list[Candidate]]:
    """Lists of the best of each pool; every outcome keeps the places that it has among the pool's first k."""
    lists = []
    scores: list[np.ndarray] = [np.empty(0)] * len(requests)
    for part in parts:
        rows = [np.array([candidate.row for candidate in pools[b]], np.int64) for b in part.index]
        ranked = rank(view.bundle, part.requests, rows, config, part.encoded, view.delta)
        for b, score_C in zip(part.index, ranked, strict=True):
            scores[b] = score_C
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


def popular(
    bundle: "Bundle", request: GenerationRequest, fresh_every: int = 5, delta: Delta | None = None
) -> list[Candidate]:
    """A list for whom nothing is known of: popular items, every `fresh_every`-th a new one, best first.

    The filters are those of `generate`; k distinct items wherever they leave k.
    """
    view = View(bundle, delta)
    only = Filter.of(view, request)
    rows = only.among(view, view.popularity.cold_start(request.surface, len(view), fresh_every))[: request.k]
    if len(rows) < request.k:
        others = only.left(view)
        others[rows] = False
        rows = np.concatenate((rows, np.flatnonzero(others)[: request.k - len(rows)]))
    # The score orders the list and means nothing else: popularity and newness share no scale.
    chosen = rows.tolist()
    return [
        Candidate(row, item_id, 1 / (1 + at))
        for at, (row, item_id) in enumerate(zip(chosen, view.item_ids(chosen), strict=True))
    ]


def similar(
    bundle: "Bundle",
    item_id: str,
    k: int,
    config: GenerationConfig,
    categories: frozenset[str] = frozenset(),
    delta: Delta | None = None,
) -> list[Candidate] | None:
    """The k items whose vectors have the largest inner products with an item's, best first; never the item itself.

    Vectors are of unit length, so the score is the cosine.

    Args:
        categories: if any, items must be in at least one of them.

    Returns:
        None where there is no such item, or it was deleted.
    """
    view = View(bundle, delta)
    row = view.rows(np.array([hash_id(item_id)], np.uint64))
    if row[0] == ANY:
        return None
    embeddings = Embeddings(
        e_BED=view.vectors(row)[None],
        outcome_BE=np.array([[ANY]]),
        offset_E=np.array([math.nan]),
        step_E=np.array([0]),
        slots_BE=np.array([[k]]),
    )
    request = GenerationRequest(None, k, 0.0, context_item=item_id, exclude_seen=False, categories=categories)
    return retrieve(bundle, [request], embeddings, config, delta)[0]
