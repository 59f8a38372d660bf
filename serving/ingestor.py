"""The Ingestor deployment: a member of the Kafka consumer group, run beside Serve's event loop.

The loop itself is plain code in streaming/ingest.py that knows no Ray; no torch is imported here.
"""

import asyncio
import dataclasses
import logging
import os
import threading
from concurrent.futures import Future
from typing import Any

from ray import serve
from ray.serve.handle import DeploymentHandle

from serving.affinity import near
from serving.config import AppSettings
from streaming.archive import Archive
from streaming.dead_letter_limit import IngestHaltedError
from streaming.ingest import Ingestor
from streaming.process import tune_garbage_collection
from streaming.schema import EventCodec
from streaming.stores.lmdb import LmdbSequenceStore

log = logging.getLogger(__name__)

_FIRST_RETRY_S = 0.1
_LAST_RETRY_S = 5.0
_CALLS = 2


class HandleSink:
    """Hands users with new events to the Recommender; a call that fails is made again until it succeeds.

    What is asked for while `_CALLS` calls are under way goes into the next one, each user once: alone, an event is
    handed over at once, and under load calls grow instead of multiplying. With several replicas each partition's
    calls go to its own (`serving.affinity`), else all share them. The ingestor commits a range only when its future is
    done, so lists owed when this process dies are made by the next one.
    """

    def __init__(self, recommender: DeploymentHandle[Any], loop: asyncio.AbstractEventLoop) -> None:
        self._recommender, self._loop = recommender, loop
        self._replicas = 1
        self._lanes: dict[int, _Lane] = {}

    def submit(self, partition: int, user_ids: list[str]) -> "Future[None]":
        """Ask for new lists; done when they are published. May be called from any thread."""
        done: Future[None] = Future()
        self._loop.call_soon_threadsafe(self._ask, partition, user_ids, done)
        return done

    def _ask(self, partition: int, user_ids: list[str], done: "Future[None]") -> None:
        number = partition if self._replicas > 1 else 0
        lane = self._lanes.setdefault(number, _Lane(number))
        lane.asked.append((user_ids, done))
        if len(lane.calls) < _CALLS and len(lane.asked) == 1:
            self._loop.call_soon(self._call, lane)  # after what else the loop has been given by now

    def _call(self, lane: "_Lane") -> None:
        if not lane.asked or len(lane.calls) >= _CALLS:
            return
        asked, lane.asked = lane.asked, []
        task = self._loop.create_task(self._deliver(lane, asked))
        lane.calls.add(task)
        task.add_done_callback(lane.calls.discard)
        task.add_done_callback(lambda _finished: self._call(lane))

    async def _deliver(self, lane: "_Lane", asked: "list[tuple[list[str], Future[None]]]") -> None:
        user_ids = list(dict.fromkeys(user_id for users, _ in asked for user_id in users))
        pause = _FIRST_RETRY_S
        while True:
            try:
                self._replicas = (await near(self._recommender, lane.number).generate.remote(user_ids)).replicas
                break
            except Exception as error:
                log.warning("lists for %d users not made: %s", len(user_ids), error)
                await asyncio.sleep(pause)
                pause = min(2 * pause, _LAST_RETRY_S)
        for _, done in asked:
            done.set_result(None)


@dataclasses.dataclass
class _Lane:
    """What is asked for and called together: the users of a partition, or of all."""

    number: int
    asked: "list[tuple[list[str], Future[None]]]" = dataclasses.field(default_factory=list)
    calls: "set[asyncio.Task[None]]" = dataclasses.field(default_factory=set)


@serve.deployment(name="Ingestor")
class IngestorDeployment:
    """Runs one Ingestor in a thread."""

    def __init__(self, settings: AppSettings, recommender: DeploymentHandle[Any]) -> None:
        rank = serve.get_replica_context().rank.rank
        store = LmdbSequenceStore(
            settings.state.sequences, settings.model.history, settings.model.stride, settings.state.map_gib
        )
        sink = HandleSink(recommender, asyncio.get_running_loop()) if settings.ingest.generate else None
        self._rank = rank
        self._crashed: str | None = None
        self._ingestor = Ingestor(
            settings.kafka,
            settings.ingest,
            EventCodec(settings.vocabulary, settings.ingest.max_future_s),
            store,
            Archive(settings.state.archive),
            sink,
            # Static membership: a replica that restarts within the session timeout takes its partitions back.
            member=f"{settings.ingest.group}-{rank}",
        )
        self._thread = threading.Thread(target=self._run, name="ingestor", daemon=True)
        self._thread.start()

    async def status(self) -> dict[str, Any]:
        """How this member is."""
        status = self._ingestor.status()
        troubles = [trouble for trouble in (self._crashed, status.halted) if trouble]
        if not status.connected:
            troubles.append(f"not ingesting: {status.last_error or 'joining the consumer group'}")
        return {
            "replica": self._rank,
            "pid": os.getpid(),
            "troubles": troubles,
            "lag": status.lag,
            **dataclasses.asdict(status),
        }

    def check_health(self) -> None:
        """Serve restarts a member that crashed; one that halted on purpose stays, and says why in its status.

        Raises:
            RuntimeError: it crashed.
        """
        if self._crashed:
            raise RuntimeError(self._crashed)

    async def __del__(self) -> None:
        """Flush and leave the group when Serve stops the replica."""
        self._ingestor.stop()
        await asyncio.get_running_loop().run_in_executor(None, self._thread.join, 10)

    def _run(self) -> None:
        tune_garbage_collection()
        try:
            self._ingestor.run()
        except IngestHaltedError as error:
            log.error("ingestion halted: %s", error)
        except Exception as error:
            log.exception("the ingestor crashed")
            self._crashed = f"{type(error).__name__}: {error}"
