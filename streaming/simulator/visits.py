"""What an inhabitant does in front of a list.

Position bias is the geometric browsing model: after each item the person goes on with probability 1 - 1/patience
(rank-biased precision, Moffat and Zobel 2008). An item looked at is clicked, saved and shared independently, each with
chance interest x appeal, and hidden for want of interest; one that was engaged with before draws little, one that was
withdrawn nothing.
"""

from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from streaming.schema import Recommendation, UserEvent
from streaming.simulator.config import TownConfig
from streaming.simulator.house import House
from streaming.simulator.items import OUTCOMES, Rows, TownItems
from streaming.simulator.memory import Memory
from streaming.simulator.people import People
from streaming.simulator.randomness import Stream, generator
from streaming.simulator.words import SUBJECTS

_AGAIN: Final = 0.05
_HIDE: Final = 0.04
_SEARCH_SHARE: Final = 0.25
_RELATED_SHARE: Final = 0.2
_ACTIONS: Final = (*OUTCOMES, "hide")
_MOST: Final = 0.95


class Visits:
    """Turns visits into events, and remembers them."""

    def __init__(self, config: TownConfig, people: People, items: TownItems, memory: Memory) -> None:
        self._config, self._people, self._items, self._memory = config, people, items, memory
        self.house = House(items, memory, config.list_size)

    def chances(self, person: int, rows: Rows, at: float) -> NDArray[np.float64]:
        """True chance of each of click, save, share, hide, given that the item is looked at. float64[N, 4].

        Zero for a row of -1 and for an item that cannot be seen.
        """
        items = self._items
        felt = self._people.interest(person, at)[items.topic[rows]]
        pull = felt * self._people.kind_taste[person][items.kind[rows]]
        known = self._memory.engaged(person)
        pull = np.where([row in known for row in rows.tolist()], pull * _AGAIN, pull)
        chance = np.empty((len(rows), len(_ACTIONS)))
        chance[:, : len(OUTCOMES)] = np.minimum(pull[:, None] * items.appeal[rows], _MOST)
        chance[:, len(OUTCOMES)] = _HIDE * (1 - felt)
        there = (rows >= 0) & ~items.withdrawn[rows] & (items.created[rows] <= at)
        return chance * there[:, None]

    def organic(self, person: int, at: float, stream: Stream, glance_s: float) -> list[UserEvent]:
        """A visit to the town's own lists: home, search, or beside the last item engaged with."""
        look = self._begin(person, at, stream, glance_s)
        choice = float(look.rng.random())
        known = self._memory.engaged(person)
        if choice < _SEARCH_SHARE:
            return self._search(look)
        if choice < _SEARCH_SHARE + _RELATED_SHARE and known:
            return self._read(look, self.house.related(look.rng, known[-1], at), "related")
        return self._read(look, self.house.home(look.rng, person, at), "home")

    def answer(self, person: int, given: Recommendation, surface: str, at: float, glance_s: float) -> list[UserEvent]:
        """The inhabitant looks at a list that somebody recommended."""
        look = self._begin(person, at, Stream.ANSWER, glance_s)
        return self._read(look, self._items.rows([item.item_id for item in given.items]).tolist(), surface, given)

    def _begin(self, person: int, at: float, stream: Stream, glance_s: float) -> "_Look":
        visit = self._memory.next_visit(person, stream)
        # The time is in the id because a town that is started again on the same log must not repeat one.
        feed_id = f"{self._people.user_ids[person]}-{round(at * 1_000)}-{stream.name[0].lower()}{visit}"
        return _Look(person, at, glance_s, feed_id, generator(self._config.seed, stream, person, visit))

    def _search(self, look: "_Look") -> list[UserEvent]:
        taste = self._people.taste(look.person, look.at)
        topic, subject = int(look.rng.choice(len(taste), p=taste)), int(look.rng.integers(SUBJECTS))
        query = UserEvent(
            event_id=f"{look.feed_id}-query",
            user_id=self._people.user_ids[look.person],
            action="search",
            surface="search",
            timestamp=round(look.at, 3),
            item_type="query",
            query=self.house.query(look.rng, topic, subject),
        )
        rows = self.house.search(look.rng, topic, subject, look.at)
        return [query, *self._read(replace(look, at=look.at + look.glance_s), rows, "search")]

    def _read(
        self, look: "_Look", rows: list[int], surface: str, given: Recommendation | None = None
    ) -> list[UserEvent]:
        """Events of reading a list until patience ends, in time order."""
        seen = min(int(look.rng.geometric(1 / self._config.patience)), len(rows))
        if not seen:
            return []
        chances = self.chances(look.person, np.array(rows[:seen]), look.at)
        done = look.rng.random((seen, len(_ACTIONS))) < chances
        events: list[UserEvent] = []
        for position, acts in enumerate(done.tolist()):
            row = rows[position]
            item_id = given.items[position].item_id if given else self._items[row].item_id
            acted = [name for name, did in zip(_ACTIONS, acts, strict=True) if did]
            for order, action in enumerate(("impression", *acted)):
                events.append(
                    UserEvent(
                        event_id=f"{look.feed_id}-{len(events):03d}",
                        user_id=self._people.user_ids[look.person],
                        item_id=item_id,
                        action=action,
                        surface=surface,
                        timestamp=round(look.at + (position + 0.2 * order) * look.glance_s, 3),
                        feed_id=look.feed_id,
                        request_id=given.request_id if given else None,
                        position=position,
                    )
                )
            if any(acts[: len(OUTCOMES)]):
                self._memory.engage(look.person, row, look.at)
        return events


@dataclass(frozen=True, slots=True)
class _Look:
    """One visit: who, from when (epoch s), how long at each item (s), its feed id and its own random numbers."""

    person: int
    at: float
    glance_s: float
    feed_id: str
    rng: np.random.Generator
