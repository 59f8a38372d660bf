"""Where a demo's events come from: the simulated town, or a real log."""

import hashlib
import json
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Final

from typing_extensions import override

from pinrec.config import Vocabulary
from streaming.item_files import items_beside, read_items
from streaming.logs import Log, derive_vocabulary, read_log
from streaming.schema import ItemUpdate, Recommendation, UserEvent
from streaming.simulator import Town, TownConfig
from streaming.simulator.live import LiveMessage

PAST_SHARE: Final = 0.8
"""Of a log: what the first model is trained on. The rest is replayed."""
_MEMORY: Final = "demo.json"
_TOWN: Final = TownConfig()


class Source(ABC):
    """Events of the past to train on, then live ones. What a restart needs is kept in the state folder."""

    name: str
    vocabulary: Vocabulary
    content_width: int
    closed_loop: bool
    """Whether recommendations are answered."""
    followed: str
    """The user whose list is shown."""

    @abstractmethod
    def items(self) -> list[ItemUpdate]:
        """The catalogue before the first live event; empty if only events are known."""

    @abstractmethod
    def past(self) -> tuple[int, Iterator[UserEvent]]:
        """(about how many, the events of the past)."""

    @abstractmethod
    def begin(self, root: Path, now: float) -> None:
        """Live events begin now, or go on where an earlier run left off."""

    @abstractmethod
    def tick(self, now: float) -> list[LiveMessage]:
        """What happened since the last tick."""

    @abstractmethod
    def offer(self, recommendation: Recommendation) -> None:
        """Give a user a list. May be called from another thread."""

    @abstractmethod
    def remember(self, root: Path) -> None:
        """Note what the next run needs."""

    @abstractmethod
    def title(self, item_id: str) -> str:
        """Of an item; its id if it has none."""

    @abstractmethod
    def about(self, user_id: str) -> str:
        """The truth about a user's taste, for people to compare with the list; empty where nobody knows it."""

    @property
    @abstractmethod
    def user_ids(self) -> list[str]:
        """Users to ask lists for."""

    @property
    def exhausted(self) -> bool:
        """No further event comes."""
        return False


class TownSource(Source):
    """The simulated town; its inhabitants answer the lists they are given."""

    name = "town"
    closed_loop = True

    def __init__(self, events_per_s: float, root: Path, config: TownConfig = _TOWN) -> None:
        self._rate = events_per_s
        # The same town with the same past, however often it is started.
        self._town = Town(config, _read_memory(root).get("opens_at", time.time()))
        self.vocabulary, self.content_width = Vocabulary(), config.content_width
        self.followed = self._town.user_ids[0]

    @override
    def items(self) -> list[ItemUpdate]:
        return self._town.items()

    @override
    def past(self) -> tuple[int, Iterator[UserEvent]]:
        return self._town.config.past_events, self._town.past()

    @override
    def begin(self, root: Path, now: float) -> None:
        self._live = self._town.live(self._rate, now)
        self._live.follow(self.followed)

    @override
    def tick(self, now: float) -> list[LiveMessage]:
        return self._live.tick(now)

    @override
    def offer(self, recommendation: Recommendation) -> None:
        self._live.offer(recommendation)

    @override
    def remember(self, root: Path) -> None:
        _write_memory(root, {"opens_at": self._town.opens_at})

    @override
    def title(self, item_id: str) -> str:
        return self._town.title(item_id) or item_id

    @override
    def about(self, user_id: str) -> str:
        return ", ".join(f"{topic} {share:.0%}" for topic, share in self._town.describe(user_id, time.time()))

    @property
    @override
    def user_ids(self) -> list[str]:
        return self._town.user_ids


class LogSource(Source):
    """A real log: the earlier part is the past, the later part is replayed in order at a steady rate."""

    closed_loop = False
    content_width = 0

    def __init__(self, path: Path, columns: dict[str, str], events_per_s: float) -> None:
        self._log: Log = read_log(path, columns)
        self._rate, self._cut = events_per_s, int(len(self._log) * PAST_SHARE)
        self.name = self._log.name
        self.vocabulary = derive_vocabulary(self._log)
        beside = items_beside(path)
        self._items = list(read_items(beside)) if beside else []
        self._titles = {item.item_id: item.title for item in self._items if item.title}
        self._at = self._cut
        self._credit = 0.0
        self.followed = ""

    @override
    def items(self) -> list[ItemUpdate]:
        return self._items

    @override
    def past(self) -> tuple[int, Iterator[UserEvent]]:
        return self._cut, iter(self._log.slice(0, self._cut))

    @override
    def begin(self, root: Path, now: float) -> None:
        self._at = max(self._cut, _read_memory(root).get("next_row", self._cut))
        self._rest = iter(self._log.slice(self._at))
        self._last = now
        # Whoever acts most in the first minute is worth watching.
        soon = self._log.slice(self._at, self._at + int(60 * self._rate)).table["user_id"].to_pylist()
        self.followed = max(set(soon), key=soon.count) if soon else ""

    @override
    def tick(self, now: float) -> list[LiveMessage]:
        self._credit += (now - self._last) * self._rate
        self._last = now
        whole = int(self._credit)
        self._credit -= whole
        events = list(islice(self._rest, whole))
        self._at += len(events)
        return list(events)

    @override
    def remember(self, root: Path) -> None:
        _write_memory(root, {"next_row": self._at})

    @override
    def offer(self, recommendation: Recommendation) -> None:
        """A log goes on as it was written, whatever is recommended."""

    @override
    def about(self, user_id: str) -> str:
        return ""

    @override
    def title(self, item_id: str) -> str:
        return self._titles.get(item_id, item_id)

    @property
    @override
    def user_ids(self) -> list[str]:
        users: list[str] = self._log.slice(self._cut).table["user_id"].unique().to_pylist()
        return users

    @property
    @override
    def exhausted(self) -> bool:
        return self._at >= len(self._log)


def log_folder(path: Path) -> str:
    """Name of the state folder of a log: its file name and, as many are called alike, a part of a hash of its path."""
    return f"demo-{path.stem.split('.')[0]}-{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]}"


def _read_memory(root: Path) -> dict[str, Any]:
    try:
        memory: dict[str, Any] = json.loads((root / _MEMORY).read_text())
    except FileNotFoundError:
        return {}
    return memory


def _write_memory(root: Path, memory: dict[str, Any]) -> None:
    aside = root / f".{_MEMORY}.writing"
    aside.write_text(json.dumps(memory))
    aside.replace(root / _MEMORY)
