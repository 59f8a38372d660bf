"""The town's items: what each is, and which can be seen.

Item number n is a pure function of n and the seed, so a town that is started again still knows the items that an
earlier run of it made. Numbers below `TownConfig.items` are the catalogue the town opens with; item n above them
appears n * 60 / new_items_per_minute seconds after the epoch.
"""

import re
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from streaming.schema import ItemUpdate
from streaming.simulator.config import TownConfig
from streaming.simulator.randomness import Stream, generator
from streaming.simulator.words import COMBINATIONS, KINDS, TOPICS, wording

Rows = NDArray[np.int64]

OUTCOMES: Final = ("click", "save", "share")
_PREFIX: Final = "item-"
_ITEM_ID: Final = re.compile(rf"{_PREFIX}(\d{{5,12}})")
_STEP: Final = 617  # coprime with COMBINATIONS, so a topic repeats no title within COMBINATIONS items
_TOPIC_STEP: Final = 389  # so that items made one after the other differ in kind
_NOISE: Final = 0.6  # length of a content vector's noise beside a topic direction of length 1
_KIND_WEIGHT: Final = 0.6
_QUALITY: Final = 0.35  # sigma of the log-normal quality, drawn for each outcome alone


@dataclass(frozen=True, slots=True)
class TownItem:
    """One item. `appeal` is the true chance per outcome of `OUTCOMES`; it never leaves the simulator."""

    number: int
    topic: int
    kind: int
    subject: int
    title: str
    appeal: NDArray[np.float64]
    content: tuple[float, ...]

    @property
    def item_id(self) -> str:
        """The id that events carry."""
        return f"{_PREFIX}{self.number:05d}"


class TownItems:
    """All items known so far, by row. Rows are in order of `created`; a row is never reused."""

    def __init__(self, config: TownConfig, opens_at: float) -> None:
        self._config = config
        self._topic_centres = _unit(generator(config.seed, Stream.CENTRE, 0), config.topics, config.content_width)
        self._kind_centres = _unit(generator(config.seed, Stream.CENTRE, 1), len(KINDS), config.content_width)
        made = [self._make(number) for number in range(config.items)]
        # Half are older than the past, so that its first days have a catalogue; the others appear during it.
        age_days = np.linspace(2 * config.past_days, 0.01, config.items)
        self._items = made
        self._row = {item.item_id: row for row, item in enumerate(made)}
        self.created = np.round(opens_at - age_days * 86_400, 3)
        self.topic = np.array([item.topic for item in made])
        self.kind = np.array([item.kind for item in made])
        self.subject = np.array([item.subject for item in made])
        self.appeal = np.stack([item.appeal for item in made])
        self.withdrawn = np.zeros(config.items, dtype=bool)
        self._oldest = 0
        self._newest = self._number_at(opens_at)

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, row: int) -> TownItem:
        return self._items[row]

    def seen_at(self, at: float) -> NDArray[np.bool_]:
        """Which rows can be seen at a moment. bool[N]."""
        mask: NDArray[np.bool_] = (self.created <= at) & ~self.withdrawn
        return mask

    def row(self, item_id: str) -> int:
        """Row of an item; -1 for one the town never made. One that an earlier run made is taken in again."""
        row = self._row.get(item_id, -1)
        if row < 0 and (item := self.find(item_id)):
            row = self._append(item, self._appears(item.number))
        return row

    def find(self, item_id: str) -> TownItem | None:
        """An item the town has made, in this run or an earlier one; None for any other id."""
        if item_id in self._row:
            return self._items[self._row[item_id]]
        match = _ITEM_ID.fullmatch(item_id)
        number = int(match[1]) if match else -1
        if match and self._config.items < number <= self._newest and (item := self._make(number)).item_id == item_id:
            return item
        return None

    def rows(self, item_ids: list[str]) -> Rows:
        """Rows of items, see `row`."""
        return np.array([self.row(item_id) for item_id in item_ids], dtype=np.int64)

    def appear(self, until: float) -> list[int]:
        """Rows of the items that are new since the last call."""
        first, self._newest = self._newest + 1, max(self._newest, self._number_at(until))
        return [self._append(self._make(number), self._appears(number)) for number in range(first, self._newest + 1)]

    def _number_at(self, at: float) -> int:
        return max(self._config.items, int(at * self._config.new_items_per_minute / 60))

    def _appears(self, number: int) -> float:
        return round(number * 60 / self._config.new_items_per_minute, 3)

    def _append(self, item: TownItem, created: float) -> int:
        row = len(self._items)
        self._items.append(item)
        self._row[item.item_id] = row
        self.created = np.append(self.created, created)
        self.topic = np.append(self.topic, item.topic)
        self.kind = np.append(self.kind, item.kind)
        self.subject = np.append(self.subject, item.subject)
        self.appeal = np.vstack([self.appeal, item.appeal])
        self.withdrawn = np.append(self.withdrawn, False)
        return row

    def withdraw_oldest(self) -> int:
        """The oldest item that can be seen disappears; its row."""
        row = self._oldest
        self._oldest += 1
        self.withdrawn[row] = True
        return row

    def update(self, row: int) -> ItemUpdate:
        """The message that announces an item."""
        item = self._items[row]
        return ItemUpdate(
            item_id=item.item_id,
            title=item.title,
            categories=(TOPICS[item.topic].name, KINDS[item.kind].name),
            embedding=item.content,
            created_at=float(self.created[row]),
        )

    def _make(self, number: int) -> TownItem:
        config = self._config
        topic = number % config.topics
        words = wording(topic, (number // config.topics * _STEP + topic * _TOPIC_STEP + config.seed) % COMBINATIONS)
        rng = generator(config.seed, Stream.ITEM, number)
        kind = KINDS[words.kind]
        quality = np.exp(rng.normal(0.0, _QUALITY, len(OUTCOMES)))
        appeal = np.minimum(np.array([kind.click, kind.save, kind.share]) * quality, 0.95)
        noise = rng.normal(0.0, _NOISE / np.sqrt(config.content_width), config.content_width)
        content = self._topic_centres[topic] + _KIND_WEIGHT * self._kind_centres[words.kind] + noise
        content /= np.linalg.norm(content)
        rounded = tuple(float(x) for x in content.round(5))
        return TownItem(number, topic, words.kind, words.subject, words.title, appeal, rounded)


def _unit(rng: np.random.Generator, count: int, width: int) -> NDArray[np.float64]:
    """Random directions. float64[count, width]."""
    vectors = rng.normal(size=(count, width))
    unit: NDArray[np.float64] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit
