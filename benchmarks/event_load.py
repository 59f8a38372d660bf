"""Open-loop load: events at a steady rate, and when the answer to each one arrived. Runs in a process of its own."""

import json
import random
import threading
import time
from bisect import bisect_left
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from kafka import KafkaConsumer, TopicPartition

from benchmarks.result import BenchmarkError
from pinrec.config import Vocabulary
from streaming.config import IngestSettings, KafkaSettings
from streaming.publisher import Delivery, EventPublisher
from streaming.schema import EventCodec, UserEvent
from streaming.stores.lmdb import LmdbSequenceStore
from streaming.topics import client_options

_DRAIN_S: Final = 15.0
_PROBE_S: Final = 0.002


@dataclass(frozen=True)
class Load:
    """What to publish, and what answers it."""

    kafka: KafkaSettings
    user_ids: Sequence[str]
    item_ids: Sequence[str]
    rate: float
    seconds: float
    warm_up_s: float
    seed: int
    echoed: bool
    """True: the answer to an event is the same bytes on another topic; False: a Recommendation."""
    store: tuple[Path, int, int] | None = None
    """(folder, limit, stride) of the sequence store, to see when events are applied; costs some CPU time."""


@dataclass
class Taken:
    """What one round gave. Latencies in ms from the moment an event was due to be published."""

    latencies: list[float]
    superseded: int
    """Events answered by the list for a later event of the same user; their latencies are among the rest."""
    cpu_share: float
    """CPU time of the load process over wall time."""
    stages: dict[str, list[float]] = field(default_factory=dict)
    """Milliseconds of each stage, by event; empty without `Load.store`."""


class Ledger:
    """Which answer answers which event. An answer to an event answers all earlier ones of its user too."""

    def __init__(self) -> None:
        self._open: dict[str, list[str]] = {}
        self._due: dict[str, float] = {}
        self._lock = threading.Lock()
        self.latency: dict[str, float] = {}
        """Event -> s until it was answered."""
        self.superseded: set[str] = set()

    def publish(self, user_id: str, event_id: str, due: float) -> None:
        """Note an event before it is published."""
        with self._lock:
            self._open.setdefault(user_id, []).append(event_id)
            self._due[event_id] = due

    def answer(self, user_id: str, event_id: str, at: float) -> bool:
        """Note an answer made from a history that ends in this event. False if the event was answered before."""
        with self._lock:
            waiting = self._open.get(user_id, [])
            if event_id not in waiting:
                return False
            done = waiting.index(event_id) + 1
            answered, self._open[user_id] = waiting[:done], waiting[done:]
            for one in answered:
                self.latency[one] = at - self._due[one]
            self.superseded.update(answered[:-1])
            return True

    @property
    def unanswered(self) -> int:
        """Events without an answer."""
        with self._lock:
            return sum(map(len, self._open.values()))


def run(load: Load) -> Taken:
    """One round.

    Raises:
        BenchmarkError: an event was not answered.
        PublishError: Kafka did not take one.
    """
    ledger, stop = Ledger(), threading.Event()
    consumer = listener(load.kafka, load.kafka.recommendations)
    starts = ends(load.kafka, load.kafka.events) if load.store else {}
    answers: dict[str, _Answer] = {}
    probe = _Probe(load, stop) if load.store else None
    receiver = threading.Thread(target=_receive, args=(consumer, load.echoed, ledger, answers, stop), daemon=True)
    with EventPublisher(load.kafka, EventCodec(Vocabulary())) as publisher:
        receiver.start()
        began, cpu = time.monotonic(), time.process_time()
        try:
            events, deliveries = _publish(load, publisher, ledger)
            deadline = time.monotonic() + _DRAIN_S
            while ledger.unanswered and time.monotonic() < deadline:
                time.sleep(0.02)
            share = (time.process_time() - cpu) / (time.monotonic() - began)
        finally:
            stop.set()
            receiver.join()
            consumer.close()
        publisher.flush()
    if ledger.unanswered:
        raise BenchmarkError(
            f"{ledger.unanswered} of {len(events)} events had no answer within {_DRAIN_S:g} s of the last"
        )
    warm_until = events[0].timestamp + load.warm_up_s
    counted = [event.event_id for event in events if event.event_id and event.timestamp >= warm_until]
    taken = Taken(
        [ledger.latency[e] * 1e3 for e in counted], len(ledger.superseded.intersection(counted)), cpu_share=share
    )
    if probe:
        appended = _appended(load.kafka, starts)
        taken.stages = _stages(
            events, counted, {e: f.result() for e, f in deliveries.items()}, appended, probe, answers
        )
    return taken


def listener(kafka: KafkaSettings, topic: str) -> KafkaConsumer:
    """A consumer that stands at the end of a topic."""
    ingest = IngestSettings()
    consumer = KafkaConsumer(
        **client_options(kafka, "pinrec-bench"),
        group_id=None,
        enable_auto_commit=False,
        auto_offset_reset="latest",
        fetch_max_wait_ms=ingest.fetch_max_wait_ms,
        max_poll_records=ingest.max_poll_records,
        metrics_enabled=False,
    )
    partitions = [TopicPartition(topic, number) for number in range(kafka.partitions)]
    consumer.assign(partitions)
    consumer.seek_to_end()
    for partition in partitions:
        consumer.position(partition)
    return consumer


def ends(kafka: KafkaSettings, topic: str) -> dict[TopicPartition, int]:
    """Where each partition ends now."""
    consumer = listener(kafka, topic)
    try:
        return {partition: consumer.position(partition) for partition in consumer.assignment()}
    finally:
        consumer.close()


@dataclass(frozen=True)
class _Answer:
    created: float
    """When the list was made; 0 for an echo."""
    received: float


def _publish(
    load: Load, publisher: EventPublisher, ledger: Ledger
) -> "tuple[list[UserEvent], dict[str, Future[Delivery]]]":
    rng = random.Random(load.seed)
    surfaces = Vocabulary().surfaces
    events: list[UserEvent] = []
    deliveries: dict[str, Future[Delivery]] = {}
    began = time.time() + 0.05
    for i in range(round(load.rate * (load.warm_up_s + load.seconds))):
        due = began + i / load.rate
        event = UserEvent(
            event_id=f"bench-{load.seed}-{began:.0f}-{i:06d}",
            user_id=rng.choice(load.user_ids),
            item_id=rng.choice(load.item_ids),
            action=rng.choice(("click", "click", "save")),  # engaging, so that each asks for a list
            surface=rng.choice(surfaces),
            timestamp=due,
        )
        assert event.event_id is not None
        if (early := due - time.time()) > 0:
            time.sleep(early)
        ledger.publish(event.user_id, event.event_id, due)
        deliveries[event.event_id] = publisher.publish(event)
        events.append(event)
    return events, deliveries


def _receive(
    consumer: KafkaConsumer, echoed: bool, ledger: Ledger, answers: dict[str, _Answer], stop: threading.Event
) -> None:
    while not stop.is_set():
        for records in consumer.poll(timeout_ms=50).values():
            now = time.time()
            for record in records:
                message: dict[str, Any] = json.loads(record.value)
                event_id = message["event_id"] if echoed else message["sequence"]["last_event_id"]
                if ledger.answer(message["user_id"], event_id or "", now):
                    answers[event_id] = _Answer(message.get("created_at", 0.0), now)


class _Probe:
    """Watches how far each partition is applied, from outside, by reading the store as a replica does."""

    def __init__(self, load: Load, stop: threading.Event) -> None:
        assert load.store is not None
        self._store = LmdbSequenceStore(*load.store, readonly=True)
        self._seen: dict[int, tuple[list[int], list[float]]] = {n: ([], []) for n in range(load.kafka.partitions)}
        self._stop = stop
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def applied_at(self, delivery: Delivery) -> float:
        """When the event was first seen to be applied, epoch s."""
        offsets, times = self._seen[delivery.partition]
        return times[bisect_left(offsets, delivery.offset + 1)]

    def close(self) -> None:
        """Let the store go."""
        self._thread.join()
        self._store.close()

    def _watch(self) -> None:
        while not self._stop.is_set():
            for number, (offsets, times) in self._seen.items():
                offset = self._store.offset(number) or 0
                if not offsets or offset > offsets[-1]:
                    offsets.append(offset)
                    times.append(time.time())
            time.sleep(_PROBE_S)


def _appended(kafka: KafkaSettings, starts: dict[TopicPartition, int]) -> dict[tuple[int, int], float]:
    """(partition, offset) -> when Kafka appended the event, epoch s; whole milliseconds."""
    until = ends(kafka, kafka.events)
    found: dict[tuple[int, int], float] = {}
    consumer = KafkaConsumer(**client_options(kafka, "pinrec-bench"), group_id=None, enable_auto_commit=False)
    try:
        consumer.assign(list(starts))
        for partition, offset in starts.items():
            consumer.seek(partition, offset)
        while any(consumer.position(partition) < until[partition] for partition in starts):
            for records in consumer.poll(timeout_ms=200).values():
                found.update({(r.partition, r.offset): r.timestamp / 1e3 for r in records})
    finally:
        consumer.close()
    return found


def _stages(
    events: Sequence[UserEvent],
    counted: Sequence[str],
    deliveries: dict[str, Delivery],
    appended: dict[tuple[int, int], float],
    probe: _Probe,
    answers: dict[str, _Answer],
) -> dict[str, list[float]]:
    """Milliseconds of each stage, of the events that have a list of their own."""
    probe.close()
    due = {event.event_id: event.timestamp for event in events}
    stages: dict[str, list[float]] = {"append": [], "apply": [], "make": [], "deliver": [], "whole": []}
    for event_id in counted:
        if event_id not in answers:  # superseded
            continue
        delivery, answer = deliveries[event_id], answers[event_id]
        append, apply = appended[delivery.partition, delivery.offset], probe.applied_at(delivery)
        for name, start, end in (
            ("append", due[event_id], append),
            ("apply", append, apply),
            ("make", apply, answer.created),
            ("deliver", answer.created, answer.received),
            ("whole", due[event_id], answer.received),
        ):
            stages[name].append((end - start) * 1e3)
    return stages
