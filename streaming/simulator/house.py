"""The lists the town makes itself: the logging policy before there is a recommender, and beside it.

Realistic in its bias: popular items and a person's recent topics get most of the exposure, chance and new items
a little.
"""

from collections.abc import Iterable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from streaming.simulator.items import Rows, TownItems
from streaming.simulator.memory import Memory
from streaming.simulator.words import TOPICS

_SOURCES: Final = ("popular", "familiar", "chance", "new")
_SHARES: Final = np.cumsum([0.30, 0.45, 0.15, 0.10])
_REFRESH_LISTS: Final = 64
_NEW_SHARE: Final = 20  # one in so many of the items counts as new
_RECENT: Final = 12  # engagements that tell a person's recent topics


class House:
    """Makes lists from what can be observed; it knows nobody's true taste."""

    def __init__(self, items: TownItems, memory: Memory, list_size: int) -> None:
        self._items, self._memory, self._size = items, memory, list_size
        self._age = _REFRESH_LISTS
        self._seen: Rows = np.zeros(0, dtype=np.int64)
        self._by_topic: dict[int, Rows] = {}
        self._cdf: NDArray[np.float64] = np.zeros(0)
        self._weight: NDArray[np.float64] = np.zeros(0)

    def stale(self) -> None:
        """Items came or went: count anew before the next list."""
        self._age = _REFRESH_LISTS

    def home(self, rng: np.random.Generator, person: int, at: float) -> list[int]:
        """Rows of a home feed."""
        self._refresh(at)
        known = self._memory.engaged(person)
        recent = list(known)[-_RECENT:]
        draws = rng.random((3 * self._size, 2))
        rows: list[int] = []
        for source, place in zip(np.searchsorted(_SHARES, draws[:, 0]).tolist(), draws[:, 1].tolist(), strict=True):
            name = _SOURCES[min(source, len(_SOURCES) - 1)]
            if name == "popular":
                row = self._seen[np.searchsorted(self._cdf, place * self._cdf[-1])]
            elif name == "familiar" and recent:
                which, rest = divmod(place * len(recent), 1)
                row = self._of_topic(int(self._items.topic[recent[int(which)]]), rest)
            elif name == "new":
                row = self._seen[-1 - int(place * max(1, len(self._seen) // _NEW_SHARE))]
            else:
                row = self._seen[int(place * len(self._seen))]
            rows.append(int(row))
        return self._distinct(rows, known)

    def related(self, rng: np.random.Generator, row: int, at: float) -> list[int]:
        """Rows shown beside an item: its topic, the popular first in chance."""
        self._refresh(at)
        topic = int(self._items.topic[row])
        return self._distinct([self._of_topic(topic, p) for p in rng.random(2 * self._size)], [row])

    def search(self, rng: np.random.Generator, topic: int, subject: int, at: float) -> list[int]:
        """Rows that answer a query about a subject: items that name it, then others of the topic."""
        self._refresh(at)
        rows = self._by_topic.get(topic, self._seen)
        named = rows[self._items.subject[rows] == subject]
        rest = [self._of_topic(topic, p) for p in rng.random(2 * self._size)]
        return self._distinct([*rng.permutation(named).tolist(), *rest], ())

    @staticmethod
    def query(rng: np.random.Generator, topic: int, subject: int) -> str:
        """What a person types: the subject, sometimes with an adjective or the topic's name."""
        words = TOPICS[topic]
        choice = int(rng.integers(6))
        if choice < len(words.adjectives):
            return f"{words.adjectives[choice]} {words.subjects[subject]}"
        return f"{words.name} {words.subjects[subject]}" if choice == len(words.adjectives) else words.subjects[subject]

    def _of_topic(self, topic: int, place: float) -> int:
        rows = self._by_topic.get(topic, self._seen)
        cdf = np.cumsum(self._weight[rows])
        return int(rows[np.searchsorted(cdf, place * cdf[-1])])

    def _distinct(self, rows: list[int], without: Iterable[int]) -> list[int]:
        taken = set(without)
        return [row for row in dict.fromkeys(rows) if row not in taken][: self._size]

    def _refresh(self, at: float) -> None:
        self._age += 1
        if self._age <= _REFRESH_LISTS:
            return
        self._age = 0
        self._seen = np.flatnonzero(self._items.seen_at(at))
        self._weight = self._memory.heat(len(self._items)) + 0.2
        self._cdf = np.cumsum(self._weight[self._seen])
        topics = self._items.topic[self._seen]
        self._by_topic = {int(topic): self._seen[topics == topic] for topic in np.unique(topics)}
