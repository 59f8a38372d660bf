"""Generations that one partition's events still owe.

Ingestion never waits for the model: at most `bound` ranges of offsets are with the generator, and
what comes in meanwhile is gathered into the next range, each user once. The committed offset of the
consumer group follows the ranges that are done, so a killed ingestor makes up for the rest.
"""

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Final, Protocol

log = logging.getLogger(__name__)

_RETRY_S: Final = 1.0


class GenerationSink(Protocol):
    """What makes lists for users whose histories changed."""

    def submit(self, partition: int, user_ids: list[str]) -> Future[None]:
        """Generate for distinct users, each in its newest state. Must return at once; done = published."""


@dataclass(slots=True)
class _Range:
    next: int
    user_ids: list[str]
    future: Future[None]
    retry_at: float | None = None


class GenerationQueue:
    """Owed generations of one partition. Everything here but `owed` runs on the poll thread.

    Args:
        first: offset from which generation is owed.
        bound: most ranges that may be with the generator at once.
        clock: monotonic seconds; replaced in tests.
    """

    def __init__(
        self,
        sink: GenerationSink,
        partition: int,
        first: int,
        bound: int = 4,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.next = self.done = first
        self._submitted = 0
        self._sink, self._partition, self._bound, self._clock = sink, partition, bound, clock
        self._with_sink: deque[_Range] = deque()
        self._gathered: dict[str, None] = {}

    @property
    def owed(self) -> int:
        """Lists that are owed, those with the generator included; a user's next event there may call for one more."""
        return len(self._gathered) + sum(len(owed.user_ids) for owed in tuple(self._with_sink))

    def add(self, next_offset: int, user_ids: Iterable[str]) -> None:
        """Owe these users up to an offset."""
        self._gathered.update(dict.fromkeys(user_ids))
        self.next = next_offset

    def advance(self) -> int:
        """Take note of finished ranges and hand over the next. Never blocks.

        Returns:
            the number of users handed over.
        """
        before = self._submitted
        while self._with_sink and self._finished(self._with_sink[0]):
            self.done = self._with_sink.popleft().next
        if self._gathered:
            if len(self._with_sink) < self._bound:
                user_ids = list(self._gathered)
                self._gathered = {}
                self._with_sink.append(_Range(self.next, user_ids, self._submit(user_ids)))
        elif self._with_sink:
            # Nobody is owed for what came since.
            self._with_sink[-1].next = self.next
        else:
            self.done = self.next
        return self._submitted - before

    def _finished(self, owed: _Range) -> bool:
        if not owed.future.done():
            return False
        error = owed.future.exception() if not owed.future.cancelled() else TimeoutError("cancelled")
        if error is None:
            return True
        if owed.retry_at is None:
            log.warning(
                "generation for %d users of partition %d failed: %s", len(owed.user_ids), self._partition, error
            )
            owed.retry_at = self._clock() + _RETRY_S
        elif self._clock() >= owed.retry_at:
            owed.future, owed.retry_at = self._submit(owed.user_ids), None
        return False

    def _submit(self, user_ids: list[str]) -> Future[None]:
        self._submitted += len(user_ids)
        try:
            return self._sink.submit(self._partition, user_ids)
        except Exception as error:  # whatever a sink raises, ingestion goes on
            failed: Future[None] = Future()
            failed.set_exception(error)
            return failed
