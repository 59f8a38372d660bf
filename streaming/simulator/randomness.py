"""Random numbers that depend on what they decide, never on the order in which things are asked."""

from enum import IntEnum

import numpy as np


class Stream(IntEnum):
    """What the numbers are for, so that no two uses share them."""

    ITEM = 1
    CENTRE = 2
    PERSON = 3
    FAVOURITE = 4
    SCHEDULE = 5
    PAST = 6
    ORGANIC = 7
    ANSWER = 8
    LIVE = 9


def generator(seed: int, stream: Stream, *key: int) -> np.random.Generator:
    """The generator of one decision; the same key gives the same numbers in any process."""
    return np.random.default_rng((seed, int(stream), *key))
