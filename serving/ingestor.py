"""The Ingestor deployment: a member of the Kafka consumer group, run beside Serve's event loop.

The loop itself is plain code in streaming/ingest.py that knows no Ray; no torch is imported here.
"""

import asyncio
import dataclasses
import logging
import os
import threading
import time
from concurrent.futures import Future
from typing import Any

from ray import serve
from ray.serve.handle import DeploymentHandle

from serving.affinity import Near
from serving.config import AppSettings
from serving.logs import log_with_serve
from serving.together import Together
from streaming.archive import Archive
from streaming.dead_letter_limit import IngestHaltedError
from streaming.ingest import Ingestor
from streaming.process import tune_garbage_collection
from streaming.schema import EventCodec
from streaming.stores.lmdb import LmdbSequenceStore

log = logging.getLogger(__name__)

_FIRST_RETRY_S = 0.1
_LAST_RETRY_S = 5.0
_LEARN_EVERY_S = 5.0
_ALL_PARTITIONS = -1
_PATIENCE_S = 60.0
"""Of a machine that is gone gRPC says nothing for minutes."""
_MOST_USERS = 500
"""Of one call, which holds at most 4 MB (`serving.affinity`), and whose lists are made anew if it is given up."""


class HandleSink:
    """Hands users with new events to the Recommender; a call that fails is made again until it succeeds.

    The ingestor commits a range only when its future is done, so lists owed when this process dies are made by the
    next one.

    Users go to the replica of their partition. Where one replica turns out to make the lists of all of them, what waits
    goes to it in one call, of whatever partitions it is: a call costs more than most of the lists it asks for. From
    time to time each partition is asked for alone again, as there may be more replicas by now.
    """

    def __init__(self, recommender: DeploymentHandle[Any], loop: asyncio.AbstractEventLoop) -> None:
        self._near, self._loop = Near(recommender, "generate"), loop
        self._together = Together[list[str], None](self._deliver)
        self._made_by: dict[int, str] = {}
        self._forget_at = 0.0

    def submit(self, partition: int, user_ids: list[str]) -> "Future[None]":
        """Ask for new lists; done when they are published. May be called from any thread."""
        return asyncio.run_coroutine_threadsafe(self._ask(partition, user_ids), self._loop)

    async def _ask(self, partition: int, user_ids: list[str]) -> None:
        if (now := time.monotonic()) >= self._forget_at:
            self._made_by.clear()
            self._forget_at = now + _LEARN_EVERY_S
        alone = partition in self._made_by and len(set(self._made_by.values())) == 1
        await self._together(_ALL_PARTITIONS if alone else partition, user_ids)

    async def _deliver(self, lane: int, asked: list[list[str]]) -> list[None]:
        """One list for each user, however often they were asked for."""
        user_ids = list(dict.fromkeys(user_id for users in asked for user_id in users))
        for at in range(0, len(user_ids), _MOST_USERS):
            await self._make(lane, user_ids[at : at + _MOST_USERS])
        return [None] * len(asked)

    async def _make(self, lane: int, user_ids: list[str]) -> None:
        """Ask until the lists are made; what takes too long is asked for in halves, so that it ends however slow."""
        pause = _FIRST_RETRY_S
        while True:
            try:
                async with asyncio.timeout(_PATIENCE_S) as patience:
                    maker = await self._near(self._session(lane)).remote(user_ids)
            except Exception as error:
                why = f"no answer in {_PATIENCE_S:g} s" if patience.expired() else error
                log.warning("lists for %d users not made: %s", len(user_ids), why)
                await asyncio.sleep(pause)
                if patience.expired() and (half := len(user_ids) // 2):
                    await self._make(lane, user_ids[:half])
                    await self._make(lane, user_ids[half:])
                    return
                pause = min(2 * pause, _LAST_RETRY_S)
                continue
            if lane != _ALL_PARTITIONS:
                self._made_by[lane] = maker
            return

    def _session(self, lane: int) -> int:
        """The partition whose replica a call goes to."""
        return min(self._made_by, default=0) if lane == _ALL_PARTITIONS else lane


@serve.deployment(name="Ingestor")
class IngestorDeployment:
    """Runs one Ingestor in a thread."""

    def __init__(self, settings: AppSettings, recommender: DeploymentHandle[Any]) -> None:
        log_with_serve()
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
