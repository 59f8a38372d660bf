"""Publishing a log again, in its order and at a chosen pace."""

import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

from streaming.logs import Log
from streaming.publisher import EventPublisher

_REPORT_EVERY_S = 0.1


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast a log is replayed: as fast as possible, unless one of these is given.

    Args:
        events_per_s: a steady rate.
        times: the log's own time, this many times as fast.
    """

    events_per_s: float | None = None
    times: float | None = None

    def __post_init__(self) -> None:
        if self.events_per_s is not None and self.times is not None:
            raise ValueError("pace: give events_per_s or times, not both")
        for value in (self.events_per_s, self.times):
            if value is not None and not 0 < value < float("inf"):
                raise ValueError(f"pace: {value} must be above 0")

    @classmethod
    def parse(cls, text: str) -> Self:
        """`max`, `500` or `500/s` (events a second), or `60x` (an hour of the log in a minute).

        Raises:
            ValueError: none of these.
        """
        if text == "max":
            return cls()
        match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)(/s|x)?", text)
        if match is None:
            raise ValueError(f"speed: {text!r} is no pace; give events a second (500), a factor (60x), or max")
        value = float(match[1])
        return cls(times=value) if match[2] == "x" else cls(events_per_s=value)

    def due(self, number: int, elapsed_s: float) -> float:
        """Seconds after the start at which event `number` is due, `elapsed_s` of the log's time after its first."""
        if self.events_per_s is not None:
            return number / self.events_per_s
        return 0.0 if self.times is None else elapsed_s / self.times


@dataclass(frozen=True, slots=True)
class Replayed:
    """What a replay did. `stopped`: it was told to stop before the end."""

    published: int
    seconds: float
    stopped: bool


class Replay:
    """Publishes a log.

    A replay that falls behind its pace catches up as fast as Kafka takes events; the publisher bounds what is under
    way.

    Args:
        log: the events, or a slice of them.
        publisher: stays open afterwards.
        pace: how fast.
        progress: told (published, events in all), ten times a second at most, and at the end.
    """

    def __init__(
        self,
        log: Log,
        publisher: EventPublisher,
        pace: Pace | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self._log, self._publisher, self._pace = log, publisher, pace or Pace()
        self._progress = progress or (lambda _done, _total: None)

    def run(self, stop: threading.Event | None = None) -> Replayed:
        """Publish until the end, or until `stop` is set; then wait until Kafka has it all.

        Raises:
            BadEventError: an event cannot be taken: the vocabulary does not fit the log.
            PublishError: Kafka did not take it all.
        """
        stop = stop or threading.Event()
        start = told = time.monotonic()
        first = float(self._log.timestamps[0]) if len(self._log) else 0.0
        published = 0
        for event in self._log:
            wait = start + self._pace.due(published, event.timestamp - first) - time.monotonic()
            if stop.wait(wait) if wait > 0 else stop.is_set():
                break
            self._publisher.publish(event)
            published += 1
            if time.monotonic() - told > _REPORT_EVERY_S:
                told = time.monotonic()
                self._progress(published, len(self._log))
        self._publisher.flush()
        self._progress(published, len(self._log))
        return Replayed(published, time.monotonic() - start, stopped=published < len(self._log))
