"""How many events may be refused before ingestion stops."""

import time
from collections import deque
from collections.abc import Callable
from typing import Final

_WINDOW_S: Final = 60.0


class IngestHaltedError(RuntimeError):
    """Too many events are bad: it is the producers or the declared vocabulary that is broken, not single events."""


class DeadLetterLimit:
    """Halts rather than turning a broken deploy into a topic full of dead letters.

    Args:
        max_bad_share: of the events of a sliding minute; 1 = never halt.
        min_bad_events: fewer bad ones in a minute never halt.
        clock: monotonic seconds; replaced in tests.
    """

    def __init__(self, max_bad_share: float, min_bad_events: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_bad_share, self._min_bad_events, self._clock = max_bad_share, min_bad_events, clock
        self._batches: deque[tuple[float, int, int]] = deque()
        self._events = self._bad = 0

    def add(self, events: int, bad: int, example: str = "") -> None:
        """Count a batch of which `bad` events were refused.

        Raises:
            IngestHaltedError: this batch passes the limit; it must not be applied.
        """
        now = self._clock()
        self._batches.append((now, events, bad))
        self._events += events
        self._bad += bad
        while self._batches[0][0] <= now - _WINDOW_S:
            _, events, bad = self._batches.popleft()
            self._events -= events
            self._bad -= bad
        if self._bad >= self._min_bad_events and self._bad > self._max_bad_share * self._events:
            raise IngestHaltedError(
                f"{self._bad} of {self._events} events of the last minute were refused, more than ingest.max_bad_share="
                f"{self._max_bad_share:g} allows; the last reason: {example or 'unknown'}. Correct the producer or the "
                "declared actions and surfaces and start again, or set ingest.max_bad_share to 1 to pass over them; "
                "nothing after the last good batch was applied"
            )
