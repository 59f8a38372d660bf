"""What has happened to the items since the live versions were made, as the items topic tells it."""

import logging
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final
from weakref import WeakKeyDictionary

from pinrec.bundle import Bundle
from pinrec.delta import Delta
from pinrec.items import Item
from streaming.config import KafkaSettings
from streaming.items_topic import ItemRecord, ItemsTopic

log = logging.getLogger(__name__)

_POLL_S: Final = 0.2
_LOOK_S: Final = 1.0
_CATCH_UP_S: Final = 15.0


@dataclass(frozen=True, slots=True)
class ItemsReport:
    """How a replica's items stand.

    Attributes:
        changed: new and changed items that the version does not have.
        deleted: items of the version that are there no more.
        left_out: changes that found no room.
        updates: records taken since the start.
        bad: records since the start that hold no item.
        lag: records that are not read yet; None before the first look.
        read_age_s: since the end of the topic was last known to be reached; None before that.
    """

    changed: int
    deleted: int
    left_out: int
    updates: int
    bad: int
    lag: int | None
    read_age_s: float | None


class LiveItems:
    """Follows the items topic in a thread, and keeps a delta for each bundle that answers.

    Whatever a bundle's catalogue was read up to, its delta holds what came after: a restart reads that again, and the
    next version has it folded in. Kafka being down changes nothing but that nothing new comes.

    Args:
        kafka: where.
        most: new and changed items of a delta at most.
    """

    def __init__(self, kafka: KafkaSettings, most: int) -> None:
        self._kafka, self._most = kafka, most
        self._topic: ItemsTopic | None = None
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        self._change = threading.Condition()
        # Bundles are let go of elsewhere; their deltas go with them.
        self._deltas: WeakKeyDictionary[Bundle, Delta] = WeakKeyDictionary()
        self._held: dict[str, ItemRecord] = {}
        self._since: dict[int, int] | None = None
        self._seek = self._complete = False
        self._updates = 0
        self._lag: int | None = None
        self._reached: float | None = None
        self._error: str | None = None

    def start(self) -> None:
        """Follow the topic from the first bundle on."""
        self._thread = threading.Thread(target=self._run, name="live-items", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop following; deltas stay as they are."""
        self._stop.set()
        with self._change:
            self._change.notify_all()
        if self._thread is not None:
            self._thread.join()

    def delta(self, bundle: Bundle) -> Delta | None:
        """What has happened since a bundle was made; None where nothing has. To be read once for a batch."""
        delta = self._deltas.get(bundle)
        if delta is None:
            delta = self._begin(bundle)
        return None if delta.empty else delta

    def prepare(self, bundle: Bundle, timeout_s: float = _CATCH_UP_S) -> Delta | None:
        """As `delta`, once the topic has been read from the bundle's positions to its end.

        It waits for that as long as Kafka answers, and at most `timeout_s`: better an old catalogue than no answer.
        """
        self._begin(bundle)
        with self._change:
            if self._thread is not None:
                self._change.wait_for(lambda: self._complete or self._error or self._stop.is_set(), timeout_s)
        return self.delta(bundle)

    def report(self, bundle: Bundle | None) -> ItemsReport:
        """How things stand for a bundle."""
        delta = self._deltas.get(bundle) if bundle is not None else None
        reached, topic = self._reached, self._topic
        return ItemsReport(
            changed=0 if delta is None else len(delta),
            deleted=0 if delta is None else delta.deleted,
            left_out=0 if delta is None else delta.left_out,
            updates=self._updates,
            bad=0 if topic is None else topic.bad,
            lag=self._lag,
            read_age_s=None if reached is None else time.monotonic() - reached,
        )

    def troubles(self, bundle: Bundle | None) -> list[str]:
        """What is wrong, one sentence each."""
        error, left_out = self._error, self.report(bundle).left_out
        found = [] if error is None else [f"item updates are not read: {error}"]
        if left_out:
            found.append(
                f"{left_out} item updates wait for the next model version; raise serving.delta_items ({self._most})"
            )
        return found

    def _begin(self, bundle: Bundle) -> Delta:
        """Keep a delta for a bundle from now on, and read again what it needs of the topic and is not held."""
        with self._change:
            known = self._deltas.get(bundle)
            if known is not None:
                return known
            needed = bundle.manifest.items_positions
            if self._since is None or any(needed.get(number, 0) < at for number, at in self._since.items()):
                since = needed if self._since is None else self._since
                self._since = {number: min(at, needed.get(number, 0)) for number, at in since.items()}
                self._seek, self._complete = True, False
            else:
                self._let_go(needed)
            delta = Delta.of(bundle, _after(needed, self._held.values()), self._most)
            self._deltas[bundle] = delta
            self._change.notify_all()
            return delta

    def _let_go(self, needed: Mapping[int, int]) -> None:
        """Drop what every bundle has: those that are kept, and one that needs all from `needed` on.

        But for deletions. An older version may come back while Kafka is away, and must not bring back what was deleted.
        """
        positions = [needed, *(bundle.manifest.items_positions for bundle in list(self._deltas))]
        least = {number: min(each.get(number, 0) for each in positions) for number in needed}
        self._held = {
            item_id: record
            for item_id, record in self._held.items()
            if record.item is None or record.offset >= least.get(record.partition, 0)
        }
        self._since = least

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                self._follow()
            except Exception as error:  # whatever it is, answers go on with what is known
                if self._error is None:
                    log.warning("item updates are not read: %s", error)
                with self._change:
                    self._error = str(error)
                    self._change.notify_all()
                self._stop.wait(_LOOK_S)
        if self._topic is not None:
            self._topic.close()

    def _follow(self) -> None:
        """Read until told to stop."""
        with self._change:
            self._change.wait_for(lambda: self._since is not None or self._stop.is_set())
            self._seek = True  # after an error, where the reader stands is not sure
        if self._stop.is_set():
            return
        if self._topic is None:
            self._topic = ItemsTopic(self._kafka, "pinrec-live-items")
        looked = 0.0
        while not self._stop.is_set():
            with self._change:
                since = dict(self._since or {}) if self._seek else None
                self._seek = False
            if since is not None and not self._topic.seek(since):
                self._note(0)  # nobody has made the topic: a bare log of events
                with self._change:
                    self._seek = True
                self._stop.wait(_LOOK_S)
                continue
            self._take(self._topic.poll(_POLL_S))
            if not self._complete or time.monotonic() - looked >= _LOOK_S:
                ends, positions = self._topic.ends(), self._topic.positions()
                self._note(sum(max(0, end - positions[number]) for number, end in ends.items()))
                looked = time.monotonic()

    def _note(self, lag: int) -> None:
        with self._change:
            self._lag, self._error = lag, None
            if not lag:
                self._reached = time.monotonic()
                # Unless another bundle has asked for more in the meantime.
                self._complete = not self._seek
            self._change.notify_all()

    def _take(self, records: list[ItemRecord]) -> None:
        if not records:
            return
        with self._change:
            news = [record for record in records if self._is_news(record)]
            self._held |= {record.item_id: record for record in news}
            # All at once: a version that goes live between two of them must not bring back what the other has not.
            self._deltas = WeakKeyDictionary(
                {
                    bundle: delta.updated(bundle, _after(bundle.manifest.items_positions, news), self._most)
                    for bundle, delta in list(self._deltas.items())
                }
            )
            self._updates += len(news)

    def _is_news(self, record: ItemRecord) -> bool:
        held = self._held.get(record.item_id)
        return held is None or held.partition != record.partition or held.offset < record.offset


def _after(positions: Mapping[int, int], records: Iterable[ItemRecord]) -> dict[str, Item | None]:
    return {r.item_id: r.item for r in records if r.offset >= positions.get(r.partition, 0)}
