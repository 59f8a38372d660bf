"""The town in real time, driven by the caller's clock."""

from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import count
from typing import Final

import numpy as np

from streaming.schema import ItemUpdate, Recommendation, UserEvent
from streaming.simulator.config import TownConfig
from streaming.simulator.items import TownItems
from streaming.simulator.people import People
from streaming.simulator.randomness import Stream, generator
from streaming.simulator.visits import Visits

_GLANCE_S: Final = 0.001
_GAP_S: Final = 2.0
_DRAWS: Final = 16


@dataclass(frozen=True, slots=True)
class Withdrawal:
    """An item is no longer to be had: a null value under its key."""

    item_id: str


LiveMessage = UserEvent | ItemUpdate | Withdrawal


class LiveTown:
    """Sessions in real time, at a bounded rate.

    In each step of a session the inhabitant answers the newest list it was offered, or, where none came since the last
    step, visits the town's own lists. The rate is held at all hours; the hour decides who is about, not how many.

    Args:
        events_per_s: mean number of events per second of the caller's clock, answers to offered lists included.
        started_at: epoch seconds from which the first `tick` counts.
    """

    def __init__(
        self,
        *,
        config: TownConfig,
        people: People,
        items: TownItems,
        visits: Visits,
        events_per_s: float,
        started_at: float,
    ) -> None:
        if not 0 < events_per_s < float("inf"):
            raise ValueError("events_per_s: must be a positive number")
        self._config, self._people, self._items, self._visits = config, people, items, visits
        self._rate = events_per_s
        self._last = started_at
        self._credit = 0.0
        self._rng = generator(config.seed, Stream.LIVE, round(started_at * 1_000))
        self._steps: list[tuple[float, int, int, int]] = []  # due, tie-break, inhabitant, steps left
        self._ties = count()
        self._in_session: set[int] = set()
        self._offered: dict[int, Recommendation] = {}
        self._followed: int | None = None

    @property
    def in_session(self) -> list[str]:
        """Inhabitants whose session goes on."""
        return [self._people.user_ids[person] for person in sorted(self._in_session)]

    def follow(self, user_id: str) -> None:
        """Keep one inhabitant in session for good, so that somebody can be watched.

        Raises:
            ValueError: nobody of that name lives here.
        """
        person = self._people.index(user_id)
        if person < 0:
            raise ValueError(f"user_id: nobody in the town is called {user_id!r}")
        self._followed = person
        if person not in self._in_session:
            self._start(person, self._last)

    def offer(self, recommendation: Recommendation) -> bool:
        """Give an inhabitant a list for their next step; a newer one replaces it. May be called from another thread.

        Returns:
            False for a stranger, whose list is ignored.
        """
        person = self._people.index(recommendation.user_id)
        if person >= 0:
            self._offered[person] = recommendation
        return person >= 0

    def tick(self, now: float) -> list[LiveMessage]:
        """What happened since the last tick: catalogue changes first, then events by time, none after `now`.

        A gap of more than 2 s is not made up for, and neither is a rate that too few inhabitants can reach.
        """
        if now < self._last:
            return []
        since, self._last = self._last, now
        self._credit = min(self._credit + (now - since) * self._rate, max(1.0, _GAP_S * self._rate))
        changes = turned_over(self._items, self._visits, now)
        events: list[UserEvent] = []
        while self._credit > 0:
            if not (self._steps and self._steps[0][0] <= now) and not self._start_someone(now):
                break
            due, _, person, left = heappop(self._steps)
            made = self._step(person, max(due, since), now)
            self._credit -= max(1, len(made))
            events += made
            self._go_on(person, left - 1, now)
        events.sort(key=lambda event: event.timestamp)
        return [*changes, *events]

    def _step(self, person: int, at: float, now: float) -> list[UserEvent]:
        offered = self._offered.pop(person, None)
        if offered is None:
            made = self._visits.organic(person, at, Stream.ORGANIC, _GLANCE_S)
        else:
            made = self._visits.answer(person, offered, "home", max(at, min(offered.created_at, now)), _GLANCE_S)
        return [e if e.timestamp <= now else e.model_copy(update={"timestamp": now}) for e in made]

    def _go_on(self, person: int, left: int, now: float) -> None:
        if left > 0 or person == self._followed:
            # Never below a tenth, so that a step is over before the next begins.
            pause = self._config.step_s * (0.1 + 0.9 * float(self._rng.exponential()))
            heappush(self._steps, (now + pause, next(self._ties), person, left))
        else:
            self._in_session.discard(person)
            self._offered.pop(person, None)  # it would be an old list by their next session

    def _start(self, person: int, at: float) -> None:
        self._in_session.add(person)
        length = int(self._rng.geometric(1 / self._config.session_views))
        heappush(self._steps, (at, next(self._ties), person, length))

    def _start_someone(self, now: float) -> bool:
        """False where nobody was found at home; the next tick tries again."""
        weights = np.cumsum(self._people.about(now))
        for person in np.searchsorted(weights, self._rng.random(_DRAWS) * weights[-1]).tolist():
            if person not in self._in_session:
                self._start(person, now)
                return True
        return False


def turned_over(items: TownItems, visits: Visits, now: float) -> list[ItemUpdate | Withdrawal]:
    """The catalogue changes since the last call: each new item withdraws the oldest."""
    changes: list[ItemUpdate | Withdrawal] = []
    for row in items.appear(now):
        gone = items.withdraw_oldest()
        changes += [items.update(row), Withdrawal(items[gone].item_id)]
    if changes:
        visits.house.stale()
    return changes
