"""Notices a partition that silently stopped being fetched (kafka-python #3106, #3131, #3138)."""

import time
from collections.abc import Callable


class StallWatch:
    """Tells a position that stands still although its log goes on.

    Args:
        stalled_after_s: how long it may stand.
        clock: monotonic seconds; replaced in tests.
    """

    def __init__(self, stalled_after_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._stalled_after_s, self._clock = stalled_after_s, clock
        self._standing: dict[int, tuple[int, float]] = {}

    def stalled(self, partition: int, position: int, end: int) -> bool:
        """Note where a partition stands; True once it has stood below its end for too long."""
        now = self._clock()
        held, since = self._standing.get(partition, (position, now))
        if position != held or position >= end:
            since = now
        self._standing[partition] = (position, since)
        return now - since >= self._stalled_after_s

    def forget(self) -> None:
        """Start anew; the consumer was replaced."""
        self._standing.clear()
