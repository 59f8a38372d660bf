"""The town as a whole: its items, its past, its present, and the truth about its inhabitants."""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from streaming.schema import ItemUpdate, Recommendation, UserEvent
from streaming.simulator.config import TownConfig
from streaming.simulator.items import OUTCOMES, TownItems
from streaming.simulator.live import LiveTown, Withdrawal, turned_over
from streaming.simulator.memory import Memory
from streaming.simulator.past import past_events
from streaming.simulator.people import DAY_S, People
from streaming.simulator.visits import Visits
from streaming.simulator.words import KINDS, TOPICS


class Town:
    """A town that opens at a moment: its past ends there, and its live events begin there.

    The same configuration and moment give the same past, and the same reactions to the same lists, in whatever order
    the lists of different inhabitants arrive. A town belongs to one thread; only `title`, `categories` and
    `LiveTown.offer` may be called from another.

    Args:
        config: size and habits.
        opens_at: epoch seconds.
    """

    def __init__(self, config: TownConfig, opens_at: float) -> None:
        self.config = config
        self.opens_at = opens_at
        self._people = People(config)
        self._items = TownItems(config, opens_at)
        self._visits = self._new_visits()

    @property
    def user_ids(self) -> list[str]:
        """All inhabitants."""
        return list(self._people.user_ids)

    def items(self) -> list[ItemUpdate]:
        """The items that can be seen now, oldest first; until the first live tick, those the town opens with."""
        return [self._items.update(row) for row in np.flatnonzero(~self._items.withdrawn).tolist()]

    def past(self) -> Iterator[UserEvent]:
        """The events before `opens_at`, by time; the same at each call.

        Read to its end, the inhabitants remember it: what they engaged with draws them less, and the town's own lists
        show what was popular.
        """
        visits = self._new_visits()
        yield from past_events(self.config, self._people, visits, self.opens_at)
        self._visits = visits

    def live(self, events_per_s: float, started_at: float | None = None) -> LiveTown:
        """The town in real time from `started_at` (default: `opens_at`), see `LiveTown`. Read `past` before, if at all.

        Raises:
            ValueError: a rate that is not positive.
        """
        start = self.opens_at if started_at is None else started_at
        return LiveTown(
            config=self.config,
            people=self._people,
            items=self._items,
            visits=self._visits,
            events_per_s=events_per_s,
            started_at=start,
        )

    def turn_over(self, now: float) -> list[ItemUpdate | Withdrawal]:
        """The catalogue changes since the last call, for a caller who drives the town without `live`.

        Args:
            now: epoch seconds, never earlier than in the last call.
        """
        return turned_over(self._items, self._visits, now)

    def about(self, at: float) -> NDArray[np.float64]:
        """Chance of each of `user_ids` to be the next who starts a session. float64[inhabitants], sums to 1."""
        weights = self._people.about(at)
        chances: NDArray[np.float64] = weights / weights.sum()
        return chances

    def answer(self, recommendation: Recommendation, now: float, surface: str = "home") -> list[UserEvent]:
        """An inhabitant looks at a list at once: impressions and actions, each with the list's request_id.

        Args:
            recommendation: the list; an item the town does not know or has withdrawn is looked at and left.
            now: epoch seconds of the first look.
            surface: where the list is shown.

        Returns:
            Events by time, all within a second of `now`; none for a stranger.
        """
        person = self._people.index(recommendation.user_id)
        if person < 0:
            return []
        return self._visits.answer(person, recommendation, surface, now, glance_s=0.001)

    def true_reward(self, user_id: str, item_ids: Sequence[str], outcome: str, at: float) -> NDArray[np.float64]:
        """Oracle: the chance that the inhabitant acts so on each item, given that they look at it. float64[N].

        0 for an item the town does not know or has withdrawn.

        Raises:
            ValueError: a stranger, or an outcome that no one here acts on.
        """
        chances = self._visits.chances(self._person(user_id), self._items.rows(list(item_ids)), at)
        return chances[:, self._outcome(outcome)]

    def best(self, user_id: str, k: int, at: float, outcome: str = "click") -> list[str]:
        """Oracle: the k items with the highest true reward, best first.

        Raises:
            ValueError: a stranger, or an outcome that no one here acts on.
        """
        chances = self._visits.chances(self._person(user_id), np.arange(len(self._items)), at)
        order = np.argsort(-chances[:, self._outcome(outcome)], kind="stable")[:k]
        return [self._items[row].item_id for row in order.tolist()]

    def title(self, item_id: str) -> str:
        """Title of an item; empty for one the town never made."""
        item = self._items.find(item_id)
        return item.title if item else ""

    def categories(self, item_id: str) -> tuple[str, ...]:
        """(topic, kind) of an item; empty for one the town never made."""
        item = self._items.find(item_id)
        return (TOPICS[item.topic].name, KINDS[item.kind].name) if item else ()

    def describe(self, user_id: str, at: float, top: int = 3) -> list[tuple[str, float]]:
        """Oracle: the inhabitant's strongest topics and their shares of taste, strongest first.

        Raises:
            ValueError: a stranger.
        """
        taste = self._people.taste(self._person(user_id), at)
        return [(TOPICS[topic].name, float(taste[topic])) for topic in np.argsort(-taste, kind="stable")[:top].tolist()]

    def _new_visits(self) -> Visits:
        memory = Memory(len(self._people.user_ids), self.opens_at - self.config.past_days * DAY_S)
        return Visits(self.config, self._people, self._items, memory)

    def _person(self, user_id: str) -> int:
        person = self._people.index(user_id)
        if person < 0:
            raise ValueError(f"user_id: nobody in the town is called {user_id!r}; see Town.user_ids")
        return person

    @staticmethod
    def _outcome(outcome: str) -> int:
        if outcome not in OUTCOMES:
            raise ValueError(f"outcome: {outcome[:64]!r} is none of {', '.join(OUTCOMES)}")
        return OUTCOMES.index(outcome)
