"""How often something is brought up to date."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

MINUTE_S: Final = 60.0
SYNCS_S: Final = {"event": 0.0, "minute": MINUTE_S, "hour": 3_600.0, "day": 86_400.0, "never": np.inf}
"""Seconds between two syncs; that of an event is immediate."""


def last_sync(at: NDArray[np.float64], begin: float, every_s: float) -> NDArray[np.float64]:
    """The time of the last sync at or before each moment, epoch seconds; the first is at `begin`."""
    if every_s == 0:
        return at
    if np.isinf(every_s):
        return np.full(len(at), begin)
    return begin + np.floor((at - begin) / every_s) * every_s
