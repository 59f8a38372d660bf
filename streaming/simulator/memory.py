"""What happened so far: what each inhabitant engaged with, and how popular each item is."""

from collections import deque
from typing import Final

import numpy as np
from numpy.typing import NDArray

from streaming.simulator.people import DAY_S

_REMEMBERED: Final = 256
_FORGET_S: Final = 2 * DAY_S


class Memory:
    """Everything observable that later behaviour depends on."""

    def __init__(self, people: int, started_at: float) -> None:
        self._started_at = started_at
        self._heat = np.zeros(0)
        self._engaged: list[deque[int]] = [deque(maxlen=_REMEMBERED) for _ in range(people)]
        self._visits: dict[tuple[int, int], int] = {}

    def engaged(self, person: int) -> deque[int]:
        """Rows of the items an inhabitant engaged with, newest last."""
        return self._engaged[person]

    def engage(self, person: int, row: int, at: float) -> None:
        """An inhabitant clicked, saved or shared an item."""
        if row not in self._engaged[person]:
            self._engaged[person].append(row)
        self._grow(row + 1)
        # Recent engagement outweighs old: growing increments cost less than decaying the whole array.
        self._heat[row] += np.exp((at - self._started_at) / _FORGET_S)

    def heat(self, count: int) -> NDArray[np.float64]:
        """Recent popularity of each item, mean 1 where anything happened. float64[count]."""
        self._grow(count)
        total = self._heat.sum()
        return self._heat[:count] * (count / total) if total else np.zeros(count)

    def next_visit(self, person: int, stream: int) -> int:
        """How often this was called before for the inhabitant and stream."""
        key = (person, stream)
        self._visits[key] = visit = self._visits.get(key, -1) + 1
        return visit

    def _grow(self, count: int) -> None:
        if len(self._heat) < count:
            self._heat = np.append(self._heat, np.zeros(max(count - len(self._heat), 1_024)))
