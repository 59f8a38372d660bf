"""Requests that come when they like, answered in batches of whatever waits."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np

HOPELESS_S: Final = 1.0
"""A request that waits longer shows that the rate is too high; nothing more is learnt by going on."""
_AT_ONCE_S: Final = 1e-6


@dataclass(frozen=True)
class Served:
    """What came of a rate; `overrun` where it was given up."""

    latencies_s: np.ndarray
    """From when each request came to when its batch was done; without the warm-up's."""
    per_s: float
    batches: int
    overrun: bool


def poisson(rate: float, seconds: float, seed: int) -> np.ndarray:
    """Sorted moments, s from 0, of independent requests at this rate."""
    rng = np.random.default_rng(seed)
    return np.sort(rng.uniform(0, seconds, rng.poisson(rate * seconds)))


def serve(
    moments: np.ndarray,
    work: Callable[[np.ndarray], object],
    most: int,
    warm_up_s: float = 0.0,
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], None] = time.sleep,
) -> Served:
    """Answer requests that come at these moments, in order, with one worker.

    Args:
        moments: s, sorted.
        work: does the requests of these numbers, as one batch.
        most: requests in a batch.
        warm_up_s: requests that come earlier are answered and not counted.
    """
    began, at, batches = clock(), 0, 0
    done = np.full(len(moments), np.nan)
    while at < len(moments):
        now = clock() - began
        if (early := moments[at] - now) > _AT_ONCE_S:
            sleep(early)
            continue
        if -early > HOPELESS_S:
            break
        batch = np.arange(at, min(int(np.searchsorted(moments, now + _AT_ONCE_S, "right")), at + most))
        work(batch)
        done[batch] = clock() - began
        at, batches = at + len(batch), batches + 1
    counted = (moments >= warm_up_s) & ~np.isnan(done)
    latencies = (done - moments)[counted]
    span = done[counted].max(initial=0.0) - warm_up_s
    return Served(latencies, len(latencies) / span if span > 0 else 0.0, batches, at < len(moments))
