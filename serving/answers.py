"""From queries and new events to lists: one batch, one bundle, one view of the store and of the catalogue."""

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from pydantic_core import to_json

from pinrec.bundle import Bundle
from pinrec.config import GenerationConfig
from pinrec.delta import Delta, View
from pinrec.encoding import Encoder, Part, from_scratch
from pinrec.generation import generate, popular, similar
from pinrec.history import History
from pinrec.requests import Candidate, GenerationRequest
from pinrec.states import UserStates
from serving.api import RecommendationRequest, SimilarItem, SimilarItems
from serving.config import ServingSettings
from serving.problems import Problem
from serving.timings import Timings
from streaming.schema import Recommendation
from streaming.stores.base import SequenceStore


@dataclass(frozen=True, slots=True)
class Made:
    """A list as JSON of a `Recommendation`, which it is for whoever it goes to, by HTTP or by Kafka.

    What is made here of checked parts is not checked again: that costs as much as to find a list's items.
    """

    user_id: str
    json: bytes

    def read(self) -> Recommendation:
        """The list as an object."""
        return Recommendation.model_validate_json(self.json)


Outcome = Made | Problem

_AHEAD: Final = 8  # users encoded at a time, some 15 ms of 256 events each


@dataclass(frozen=True, slots=True)
class _Batch:
    """What all answers of one batch share."""

    view: View
    now: float
    staleness_ms: float | None
    degraded: bool


@dataclass(frozen=True, slots=True)
class Ahead:
    """Users encoded for a bundle that does not serve yet; `deletions` is the store's mark from before the first."""

    states: UserStates
    deletions: int


def check(request: RecommendationRequest, bundle: Bundle, generation: GenerationConfig) -> None:
    """Refuse what a bundle cannot answer.

    Raises:
        Problem: 422 naming the field and the remedy.
    """
    if request.k > generation.max_k:
        raise Problem(422, f"at most {generation.max_k} (generation.max_k) may be asked for", "k")
    vocabulary = bundle.vocabulary
    if request.surface is not None and request.surface not in vocabulary.surface_index:
        known = ", ".join(vocabulary.surfaces)
        raise Problem(422, f"{request.surface[:64]!r} is not declared; declared are {known}", "surface")
    for outcome in request.outcomes or ():
        if outcome not in vocabulary.outcomes:
            known = ", ".join(vocabulary.outcomes)
            raise Problem(422, f"not an outcome; outcomes are {known}", f"outcomes.{outcome[:64]}")
    if request.outcomes is not None and not any(share > 0 for share in request.outcomes.values()):
        raise Problem(422, "the shares must sum to more than 0; leave outcomes out for the usual mix", "outcomes")


class Answerer:
    """Makes lists. Runs in one worker thread of a replica.

    Args:
        store: histories.
        generation: how lists are made.
        serving: list length for events, when an answer counts as degraded, and memory for states of users.
        timings: of the replica, where it counts them.
    """

    def __init__(
        self,
        store: SequenceStore,
        generation: GenerationConfig,
        serving: ServingSettings,
        timings: Timings | None = None,
    ) -> None:
        self._store, self._generation, self._serving = store, generation, serving
        self._timings = timings or Timings()
        self.store_error: str | None = None
        self.states = self._new_states()
        self._deletions = store.deletions(0).mark

    def answer(
        self,
        bundle: Bundle,
        queries: Sequence[RecommendationRequest],
        users: Sequence[str],
        delta: Delta | None = None,
    ) -> tuple[list[Outcome], list[Outcome]]:
        """Answers to queries, and lists for users with new events; a bad query is answered by its Problem.

        Args:
            delta: what has happened to the catalogue since the bundle was made.
        """
        return self._answer(View(bundle, delta), queries, users, self.states, self._timings)

    def rehearse(self, bundle: Bundle, queries: Sequence[RecommendationRequest], delta: Delta | None = None) -> None:
        """Answer with a bundle that does not serve yet; nothing is kept. May run in another thread."""
        self._answer(View(bundle, delta), queries, [], from_scratch, Timings())

    def similar(
        self, bundle: Bundle, item_id: str, k: int, categories: frozenset[str], delta: Delta | None = None
    ) -> SimilarItems | Problem:
        """The items most like an item; a Problem where there is no such item, or k is too large."""
        if k > self._generation.max_k:
            return Problem(422, f"at most {self._generation.max_k} (generation.max_k) may be asked for", "k")
        found = similar(bundle, item_id, k, self._generation, categories, delta)
        if found is None:
            return Problem(404, f"{bundle.version} knows no such item, or it was deleted", "item_id")
        view = View(bundle, delta)
        return SimilarItems(
            item_id=item_id,
            model_version=bundle.version,
            items=[
                SimilarItem(item_id=each.item_id, score=each.score, title=title or None)
                for each, title in zip(found, view.titles([each.row for each in found]), strict=True)
            ],
        )

    def encode_ahead(self, bundle: Bundle, user_ids: Sequence[str]) -> "Ahead":
        """Encode users with a bundle that is to serve next, until time or memory is used up.

        May run in another thread, at a bounded share of a core: who is being answered must not notice.

        Args:
            user_ids: the most recently active first; they are the likeliest to be back.
        """
        serving, ahead = self._serving, Ahead(self._new_states(), self._store.deletions(0).mark)
        until = time.monotonic() + serving.handover_s
        for at in range(0, len(user_ids), _AHEAD):
            began = time.monotonic()
            if began >= until or ahead.states.report.evictions:
                break
            users = user_ids[at : at + _AHEAD]
            histories = self._store.read(users)
            known = [(user, history) for user, history in zip(users, histories, strict=True) if history]
            if known:
                requests = [GenerationRequest(history, k=1, now=time.time(), user_id=user) for user, history in known]
                ahead.states(bundle, requests)
            time.sleep((time.monotonic() - began) * (1 / serving.handover_share - 1))
        return ahead

    def hand_over(self, ahead: "Ahead") -> None:
        """Go on with what was encoded ahead once its bundle answers."""
        _, deleted = self._store.deletions(ahead.deletions)
        if deleted is None:
            ahead.states.clear()
        else:
            ahead.states.forget(deleted)
        self.states.hand_over_to(ahead.states)

    def forget_deleted(self) -> None:
        """Drop what is kept of users whose histories have been deleted since the last time."""
        self._deletions, user_ids = self._store.deletions(self._deletions)
        if user_ids is None:
            self.states.clear()
        else:
            self.states.forget(user_ids)

    def _new_states(self) -> UserStates:
        return UserStates(self._serving.states_mib << 20, getattr(torch, self._serving.states_dtype))

    def _answer(
        self,
        view: View,
        queries: Sequence[RecommendationRequest],
        users: Sequence[str],
        encoder: Encoder,
        timings: Timings,
    ) -> tuple[list[Outcome], list[Outcome]]:
        requests = [*queries, *(RecommendationRequest(user_id=u, k=self._serving.event_k) for u in users)]
        timings.batch_size.add(len(requests))
        with timings("read"):
            histories, as_of = self._read([request.user_id for request in requests])
        now = time.time()
        staleness_ms = None if as_of is None else max(0.0, (now - as_of) * 1e3)
        degraded = staleness_ms is None or staleness_ms > self._serving.degraded_after_s * 1e3
        batch = _Batch(view, now, staleness_ms, degraded)

        answers: dict[int, Outcome] = {}
        jobs: dict[int, GenerationRequest] = {}
        for i, (request, history) in enumerate(zip(requests, histories, strict=True)):
            try:
                check(request, view.bundle, self._generation)
            except Problem as problem:
                answers[i] = problem
                continue
            job = _job(request, history, batch)
            if not history and request.context is None:
                found = popular(view.bundle, job, delta=view.delta)
                answers[i] = _answer(request, job, found, batch, i >= len(queries))
            else:
                jobs[i] = job
        lists = self._generate(view, list(jobs.values()), encoder, timings) if jobs else []
        for (i, job), candidates in zip(jobs.items(), lists, strict=True):
            answers[i] = _answer(requests[i], job, candidates, batch, i >= len(queries))
        done = [answers[i] for i in range(len(requests))]
        return done[: len(queries)], done[len(queries) :]

    def _generate(
        self, view: View, jobs: list[GenerationRequest], encoder: Encoder, timings: Timings
    ) -> list[list[Candidate]]:
        began, encoding_s = time.perf_counter(), 0.0

        def timed(bundle: Bundle, requests: Sequence[GenerationRequest], /) -> list[Part]:
            nonlocal encoding_s
            since = time.perf_counter()
            parts = encoder(bundle, requests)
            encoding_s = time.perf_counter() - since
            return parts

        lists = generate(view.bundle, jobs, self._generation, timed, view.delta)
        timings.add("encode", encoding_s)
        timings.add("generate", time.perf_counter() - began - encoding_s)
        return lists

    def _read(self, user_ids: list[str]) -> tuple[list[History | None], float | None]:
        try:
            # as_of first: read the other way round, an event applied in between would be claimed but missing.
            as_of = self._store.as_of()
            histories = self._store.read(user_ids)
        except Exception as error:  # whatever the backend raises: serving goes on, marked degraded
            self.store_error = f"{type(error).__name__}: {error}"
            return [None] * len(user_ids), None
        self.store_error = None
        return histories, as_of


def _job(request: RecommendationRequest, history: History | None, batch: _Batch) -> GenerationRequest:
    context, vocabulary = request.context, batch.view.bundle.vocabulary
    return GenerationRequest(
        history=history,
        k=request.k,
        outcomes={name: share for name, share in request.outcomes.items() if share} if request.outcomes else None,
        surface=vocabulary.surface_index[request.surface] if request.surface is not None else None,
        now=batch.now,
        context_item=context.item_id if context else None,
        context_query=context.query if context else None,
        exclude=frozenset(request.exclude),
        exclude_seen=request.exclude_seen,
        categories=frozenset(request.categories),
        user_id=request.user_id,
    )


def _answer(
    request: RecommendationRequest,
    job: GenerationRequest,
    candidates: list[Candidate],
    batch: _Batch,
    for_event: bool,
) -> Made:
    history, view = job.history or None, batch.view
    titles = view.titles([candidate.row for candidate in candidates])
    content = to_json(
        {
            "request_id": f"{view.bundle.version}.{uuid.uuid4().hex}",  # outcomes are joined to versions by it
            "user_id": request.user_id,
            "model_version": view.bundle.version,
            "created_at": time.time(),
            "trigger": "event" if for_event else "query",
            "source": "model" if history or request.context else "popular",
            "degraded": batch.degraded,
            "sequence": {
                "length": len(history) if history else 0,
                "last_event_at": float(history.rows["timestamp"][-1]) if history else None,
                "last_event_id": history.last_event_id if history else None,
                "staleness_ms": batch.staleness_ms,
            },
            "items": [
                {
                    "item_id": candidate.item_id,
                    "score": candidate.score,
                    "outcome": candidate.outcome,
                    "offset_s": candidate.offset_s,
                    "step": candidate.step,
                    "title": title or None,
                    "explored": candidate.explored,
                }
                for candidate, title in zip(candidates, titles, strict=True)
            ],
        },
        inf_nan_mode="null",
    )
    return Made(request.user_id, content)
