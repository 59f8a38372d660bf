"""Waiting for a condition, never for a time."""

import time
from collections.abc import Callable
from typing import Any


def eventually(
    condition: Callable[[], Any], within_s: float = 30.0, every_s: float = 0.02, otherwise: Callable[[], Any] = str
) -> Any:
    """The first true value of the condition; fails when the time is up, saying what `otherwise` gives."""
    deadline = time.monotonic() + within_s
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {within_s:g} s {otherwise()}"
        time.sleep(every_s)
    return value
