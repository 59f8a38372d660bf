"""What a replica of Gateway or Recommender does: model, index and histories under one scheduler. Knows no Ray."""

import asyncio
import logging
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from typing import Any, Final

import torch

from pinrec.bundle import Bundle
from pinrec.config import Vocabulary
from pinrec.index import use_threads
from pinrec.versions import RegistryError
from serving.answers import Answerer, Made, Outcome
from serving.api import Context, HistoryItem, Models, RecommendationRequest, SimilarItems, UserHistory
from serving.config import AppSettings
from serving.live import LiveBundle
from serving.live_items import LiveItems
from serving.model_list import activate, models_of, rollback
from serving.problems import Problem
from serving.scheduler import Scheduler
from serving.split import Split
from serving.timings import Timings
from streaming.process import keep_freed_memory, tune_garbage_collection
from streaming.publisher import EventPublisher
from streaming.registry_of import registry_of
from streaming.schema import EventCodec
from streaming.stores.lmdb import LmdbSequenceStore

log = logging.getLogger(__name__)

_FORGET_S: Final = 0.5
_KEPT_BYTES: Final = 256 << 20

NO_MODEL = Problem(
    503, "no model is live yet; the trainer publishes the first one when it has seen enough events", retry_after_s=5
)


class NotLiveError(Exception):
    """This replica cannot make lists yet."""


class Engine:
    """Generates lists, for queries and for new events, in shared batches. Its coroutines belong to one event loop.

    Args:
        settings: of the application.
        replica: number of the replica, for its status.
    """

    def __init__(self, settings: AppSettings, replica: int) -> None:
        keep_freed_memory(_KEPT_BYTES)
        torch.set_num_threads(settings.serving.threads)
        use_threads(settings.serving.threads)
        self._settings, self._replica = settings, replica
        self._store = LmdbSequenceStore(
            settings.state.sequences,
            settings.model.history,
            settings.model.stride,
            settings.state.map_gib,
            readonly=True,
        )
        self._timings = Timings()
        self._answerer = Answerer(self._store, settings.generation, settings.serving, self._timings)
        self._registry = registry_of(settings.state)
        self._items = LiveItems(settings.kafka, settings.serving.delta_items)
        self._items.start()
        self._live = LiveBundle(self._registry, settings.vocabulary, settings.pinned_version, self._warm)
        self._split = Split(
            settings.serving.split,
            lambda version: LiveBundle(self._registry, settings.vocabulary, version, self._rehearse, revocable=True),
            self._answerer_of,
        )
        self._generator = ThreadPoolExecutor(1, "generate")
        self._sender = ThreadPoolExecutor(1, "publish")
        # Of its own: calls that a slow registry holds up must not take the threads that others need.
        self._librarian = ThreadPoolExecutor(2, "registry")
        self._publisher: EventPublisher | None = None
        self._scheduler = Scheduler[RecommendationRequest, Outcome](
            self._work,
            self._publish,
            settings.serving.max_batch,
            settings.serving.max_queue,
            settings.serving.deadline_s,
            partial(self._timings.add, "wait"),
        )
        self._running: asyncio.Task[None] | None = None
        self._forgetting: asyncio.Task[None] | None = None
        self._recent: list[RecommendationRequest] = []
        self._answered = self._generated = self._batches = 0
        # Before requests are routed here: a replica that joins others must not say that there is no model.
        self._live.refresh()
        self._live.start(settings.serving.poll_models_s)
        self._split.start(settings.serving.poll_models_s)

    async def recommend(self, request: RecommendationRequest) -> Outcome:
        """A list; a refusal is returned."""
        self._run()
        if self._live.bundle is None:
            return NO_MODEL
        try:
            return await self._scheduler.query(request)
        except Problem as problem:
            return problem

    async def generate(self, user_ids: list[str]) -> int:
        """Make and publish new lists for users with new events; returns when Kafka has them.

        Before the first model there is nothing to make: 0.

        Raises:
            NotLiveError: there is a version, but it is not live here yet: to be asked again.
            RegistryError, OSError: it cannot be told whether there is one.
        """
        self._run()
        if self._live.bundle is None:
            wanted = await asyncio.get_running_loop().run_in_executor(self._librarian, self._live.wanted)
            if wanted is None:
                return 0
            # Other replicas may answer with it already, and who saw them do so waits for a list.
            raise NotLiveError(self._live.trouble or f"{wanted} is not live here yet")
        await asyncio.gather(*(asyncio.shield(self._scheduler.event(user_id)) for user_id in user_ids))
        return len(user_ids)

    async def similar(self, item_id: str, k: int, categories: list[str]) -> SimilarItems | Problem:
        """The items most like an item; a refusal is returned."""
        bundle = self._live.bundle
        if bundle is None:
            return NO_MODEL
        return await asyncio.get_running_loop().run_in_executor(
            self._generator,
            lambda: self._answerer.similar(bundle, item_id, k, frozenset(categories), self._items.delta(bundle)),
        )

    async def user(self, user_id: str) -> UserHistory | Problem:
        """The history of a user; a Problem if there is none, or it cannot be read."""
        loop = asyncio.get_running_loop()
        try:
            as_of = await loop.run_in_executor(None, self._store.as_of)
            (history,) = await loop.run_in_executor(None, self._store.read, [user_id])
        except Exception as error:  # whatever the backend raises
            return Problem(503, f"the sequence store cannot be read: {type(error).__name__}: {error}", retry_after_s=5)
        if history is None:
            return Problem(404, "no event of this user has been applied", "user_id")
        return UserHistory(
            user_id=user_id,
            total=history.total,
            staleness_ms=None if as_of is None else max(0.0, (time.time() - as_of) * 1e3),
            events=_history_items(history.events(), self._settings.vocabulary),
        )

    async def models(self) -> Models | Problem:
        """The versions in the registry, newest first; a Problem where it cannot be read."""
        try:
            return await asyncio.get_running_loop().run_in_executor(
                self._librarian, models_of, self._registry, self._settings.pinned_version
            )
        except (RegistryError, OSError) as error:
            return Problem(503, str(error), retry_after_s=5)

    async def activate(self, version: str, force: bool = False) -> Problem | None:
        """Point the registry at a version; every replica loads and checks it, then flips."""
        return await self._moved(activate, version, force)

    async def rollback(self, reason: str) -> Problem | None:
        """Go back to the newest older version that passed the gate; the one left never serves again by itself."""
        return await self._moved(rollback, reason)

    async def _moved(self, move: Callable[..., Any], *args: Any) -> Problem | None:
        registry, pinned = self._registry, self._settings.pinned_version
        try:
            await asyncio.get_running_loop().run_in_executor(self._librarian, move, registry, pinned, *args)
        except Problem as problem:
            return problem
        return None

    async def status(self) -> dict[str, Any]:
        """How this replica is."""
        self._run()
        queries, users = self._scheduler.waiting
        try:
            as_of, known_users, store_error = self._store.as_of(), self._store.count(), None
        except Exception as error:  # a status that fails hides the reason
            as_of, known_users, store_error = None, None, f"{type(error).__name__}: {error}"
        staleness_ms = None if as_of is None else max(0.0, (time.time() - as_of) * 1e3)
        troubles = [trouble for trouble in (store_error or self._answerer.store_error, self._live.trouble) if trouble]
        troubles += self._items.troubles(self._live.bundle)
        if staleness_ms is None or staleness_ms > self._settings.serving.degraded_after_s * 1e3:
            troubles.append("histories are behind the event topic")
        troubles += self._split.troubles
        return {
            "replica": self._replica,
            "pid": os.getpid(),
            "model_version": self._live.version,
            "live_since": self._live.live_since,
            "swaps": self._live.swaps,
            "refused": self._live.refused,
            "behind": self._live.trouble,
            "split": self._split.status,
            "troubles": troubles,
            "users": known_users,
            "staleness_ms": staleness_ms,
            "queries_answered": self._answered,
            "lists_generated": self._generated,
            "queries_refused": self._scheduler.refused,
            "lists_given_up": self._scheduler.given_up,
            "lists_superseded": self._scheduler.superseded,
            "batches": self._batches,
            "waiting_queries": queries,
            "waiting_users": users,
            **self._timings.report,
            "states": asdict(self._answerer.states.report),
            "items": asdict(self._items.report(self._live.bundle)),
        }

    def check_health(self) -> None:
        """A replica whose scheduler has died is of no use.

        Raises:
            RuntimeError: it has.
        """
        if self._running is not None and self._running.done():
            raise RuntimeError("the scheduler has stopped")

    def _run(self) -> None:
        # The scheduler belongs to the replica's event loop, which does not run yet in __init__.
        if self._running is None:
            self._running = asyncio.create_task(self._scheduler.run())
            self._forgetting = asyncio.create_task(self._forget())

    async def _forget(self) -> None:
        """Deleted users leave nothing behind, also where nobody asks for them again."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                # In the worker's thread: a batch that read a history before its deletion is done by then.
                await loop.run_in_executor(self._generator, self._forget_deleted)
            except Exception as error:  # whatever the store raises; queries go on without it as well
                log.warning("looking for deleted users failed; trying again: %s", error)
            await asyncio.sleep(_FORGET_S)

    def _forget_deleted(self) -> None:
        self._answerer.forget_deleted()
        self._split.forget_deleted()

    def _answerer_of(self, share: float) -> Answerer:
        serving = self._settings.serving
        mine = serving.model_copy(update={"states_mib": round(share * serving.states_mib)})
        return Answerer(self._store, self._settings.generation, mine, self._timings)

    def _rehearse(self, bundle: Bundle) -> None:
        # Without a context a user nobody knows gets what is popular, and the model would stay cold.
        cold = RecommendationRequest(user_id="warm-up", context=Context(item_id=bundle.catalogue.item_ids[0]))
        # Here, as a bundle goes live behind this: what was deleted since it was made must never come back.
        delta = self._items.prepare(bundle)
        self._answerer.rehearse(bundle, self._recent or [cold], delta)

    def _warm(self, bundle: Bundle) -> None:
        self._rehearse(bundle)
        if self._live.bundle is None:
            # Nobody is answered yet, and what stays is there: a walk through all of it stops a replica for 40 ms.
            tune_garbage_collection()
            return
        if not self._settings.serving.handover_s:
            return
        # The states belong to the worker's thread; what is made for the new version is nobody's until it is theirs.
        recent = self._generator.submit(lambda: self._answerer.states.recent).result()
        try:
            ahead = self._answerer.encode_ahead(bundle, recent)
        except Exception as error:  # whatever the store raises; the version's users are encoded as they come
            log.warning("users are not encoded ahead for %s: %s: %s", bundle.version, type(error).__name__, error)
            return
        self._generator.submit(self._answerer.hand_over, ahead).result()

    async def _work(
        self, queries: list[RecommendationRequest], users: list[str]
    ) -> tuple[list[Outcome], list[Outcome]]:
        bundle = self._live.bundle  # one read: all of the batch that is not another version's is made by one bundle
        assert bundle is not None, "nothing is scheduled before the first bundle is live, and none is taken away"
        answers, lists = await asyncio.get_running_loop().run_in_executor(
            self._generator, self._split.answer, self._answerer, bundle, queries, users, self._items.delta
        )
        self._recent = queries or [RecommendationRequest(user_id=user_id) for user_id in users]
        self._batches += 1
        self._answered += len(answers)
        return answers, lists

    async def _publish(self, lists: list[Outcome]) -> None:
        with self._timings("publish"):
            await asyncio.get_running_loop().run_in_executor(self._sender, self._send, lists)
        self._generated += len(lists)

    def _send(self, lists: list[Outcome]) -> None:
        if self._publisher is None:  # Kafka may be down when a replica starts; queries do not need it
            self._publisher = EventPublisher(self._settings.kafka, EventCodec(self._settings.vocabulary))
        topic = self._settings.kafka.recommendations
        for made in lists:
            if isinstance(made, Made):
                self._publisher.send(topic, made.user_id, made.json)
        self._publisher.flush()


def _history_items(events: list[Any], vocabulary: Vocabulary) -> list[HistoryItem]:
    return [
        HistoryItem(
            event_id=event.event_id,
            item_id=event.item_id,
            item_type="query" if event.is_query else "item",
            action=vocabulary.actions[event.action].name,
            surface=vocabulary.surfaces[event.surface],
            timestamp=event.timestamp,
        )
        for event in events
    ]
