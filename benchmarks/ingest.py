"""P5: events per second into store and archive, against a loop that only polls and decodes JSON."""

import json
import shutil
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from kafka import KafkaConsumer, TopicPartition

from benchmarks.children import in_child
from benchmarks.result import BenchmarkError, Result, Stage, commit, machine, rounded, summary
from pinrec.config import ModelConfig, Vocabulary
from serving.stack import Progress
from streaming.archive import Archive, RowBuffer
from streaming.broker import LocalBroker
from streaming.config import IngestSettings, KafkaSettings
from streaming.ingest import Ingestor
from streaming.process import tune_garbage_collection
from streaming.publisher import EventPublisher
from streaming.schema import EventCodec
from streaming.simulator import Town, TownConfig
from streaming.stores.base import Applied, Batch
from streaming.stores.lmdb import LmdbSequenceStore
from streaming.topics import client_options, create_topics

GOAL: Final = 0.6
_OPENS_AT: Final = 1_767_225_600.0  # 2026-01-01: the same events whenever it is run
_PATIENCE_S: Final = 300.0


@dataclass(frozen=True)
class Scale:
    """How much is measured."""

    events: int
    repeats: int
    inhabitants: int


FULL: Final = Scale(events=100_000, repeats=5, inhabitants=2_000)
QUICK: Final = Scale(events=5_000, repeats=2, inhabitants=200)


@dataclass(frozen=True)
class Repeat:
    """One pass over the topic. Times in s."""

    events: int
    seconds: float
    cpu: float
    store: float = 0.0
    archive: float = 0.0

    @property
    def rate(self) -> float:
        """Events per second."""
        return self.events / self.seconds


def measure(work: Path, quick: bool, progress: Progress) -> Result:
    """Take the measure in a broker of its own below `work`.

    Raises:
        BenchmarkError: a pass did not see every event.
    """
    began, scale = time.monotonic(), QUICK if quick else FULL
    ours: list[Repeat] = []
    bare: list[Repeat] = []
    progress("P5 broker", 0, 0)
    with LocalBroker(work / "kafka", port=None) as broker:
        kafka = broker.settings
        create_topics(kafka)
        _publish(kafka, scale, progress)
        for i in range(scale.repeats):
            progress("P5 repeats", i, scale.repeats)
            folder = work / f"repeat-{i}"
            # The order changes, so that neither always finds the pages of the log warmer.
            if i % 2:
                ours.append(in_child(ingest, kafka, scale.events, folder))
                bare.append(in_child(poll_and_decode, kafka, scale.events))
            else:
                bare.append(in_child(poll_and_decode, kafka, scale.events))
                ours.append(in_child(ingest, kafka, scale.events, folder))
            shutil.rmtree(folder)
    progress("P5 repeats", 1, 1)
    value, spread = summary([r.rate for r in ours])
    baseline, bare_spread = summary([r.rate for r in bare])
    return Result(
        id="P5",
        name="events ingested to durable state",
        value=rounded(value),
        unit="events/s",
        baseline_name="bare poll + json.loads",
        baseline=rounded(baseline),
        ratio=rounded(value / baseline),
        goal=f">= {GOAL:.0%} of the baseline",
        met=value >= GOAL * baseline,
        spread={"value": spread, "baseline": bare_spread},
        samples={"value": [rounded(r.rate) for r in ours], "baseline": [rounded(r.rate) for r in bare]},
        details={
            "events": scale.events,
            "cpu_us_per_event": rounded(summary([r.cpu / r.events for r in ours])[0] * 1e6),
            "baseline_cpu_us_per_event": rounded(summary([r.cpu / r.events for r in bare])[0] * 1e6),
        },
        stages=_stages(ours, bare),
        protocol=(
            f"{scale.events:,} events of the simulated town's past ({scale.inhabitants:,} inhabitants) on a topic of "
            f"{kafka.partitions} partitions. Each pass runs in a fresh process, ours with an empty store and archive "
            "and a new consumer group; passes alternate. The clock runs from the moment the partitions are assigned "
            "until every event is in LMDB and in a Parquet file, both flushed to disk; lists are not generated. The "
            "baseline polls the same topic with the same client options and runs json.loads on each value."
        ),
        seconds=round(time.monotonic() - began, 1),
        quick=quick,
        machine=machine(work),
        commit=commit(),
    )


def poll_and_decode(kafka: KafkaSettings, events: int) -> Repeat:
    """The bare loop over the whole topic."""
    consumer = KafkaConsumer(**_options(kafka), group_id=None, auto_offset_reset="earliest")
    try:
        partitions = [TopicPartition(kafka.events, number) for number in range(kafka.partitions)]
        consumer.assign(partitions)
        consumer.seek_to_beginning()
        for partition in partitions:  # connected and sought before the clock starts, as the ingestor's is
            consumer.position(partition)
        seen, began, cpu = 0, time.perf_counter(), time.process_time()
        while seen < events and time.perf_counter() - began < _PATIENCE_S:
            for records in consumer.poll(timeout_ms=50).values():
                for record in records:
                    json.loads(record.value)
                seen += len(records)
        seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    finally:
        consumer.close()
    _require_all(seen, events)
    return Repeat(seen, seconds, cpu)


def ingest(kafka: KafkaSettings, events: int, folder: Path) -> Repeat:
    """The real ingestor over the whole topic, into an empty store and archive."""
    model = ModelConfig()
    store = _TimedStore(folder / "sequences", model.history, model.stride)
    archive = _TimedArchive(folder / "archive")
    settings = IngestSettings(group=f"bench-{uuid.uuid4().hex[:8]}", generate=False)
    ingestor = Ingestor(kafka, settings, EventCodec(Vocabulary()), store, archive)
    store.watch(events, ingestor)
    tune_garbage_collection()  # as the Ingestor deployment does
    ingestor.run()
    store.close()
    _require_all(archive.rows, events)
    return Repeat(archive.rows, archive.ended - archive.began, archive.ended_cpu - archive.began_cpu,
                  store.seconds, archive.seconds)  # fmt: skip


class _TimedStore(LmdbSequenceStore):
    """Notes how long it works, and stops the ingestor when all is applied."""

    def __init__(self, folder: Path, limit: int, stride: int) -> None:
        super().__init__(folder, limit, stride)
        self.seconds = 0.0

    def watch(self, events: int, ingestor: Ingestor) -> None:
        """Stop `ingestor` after so many events."""
        self._left, self._ingestor, self._give_up = events, ingestor, time.monotonic() + _PATIENCE_S

    def apply_all(self, batches: Sequence[Batch]) -> list[Applied]:
        """As the store does."""
        began = time.perf_counter()
        applied = super().apply_all(batches)
        self.seconds += time.perf_counter() - began
        self._left -= sum(batch.next_offset - batch.first_offset for batch in batches)
        if self._left <= 0:
            self._ingestor.stop()
        return applied

    def touch(self, as_of: dict[int, float]) -> None:
        """As the store does; called several times a second even where nothing arrives."""
        super().touch(as_of)
        if time.monotonic() > self._give_up:
            self._ingestor.stop()


class _TimedArchive(Archive):
    """Notes when the ingestor starts to read and when the last file is on disk."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.rows = 0
        self.seconds = 0.0
        self.began = self.ended = self.began_cpu = self.ended_cpu = 0.0

    def positions(self, topic: str) -> dict[int, int]:
        """As the archive does; the ingestor asks when its partitions are assigned."""
        if not self.rows:
            self.began, self.began_cpu = time.perf_counter(), time.process_time()
        return super().positions(topic)

    def write(self, topic: str, rows: RowBuffer) -> Path:
        """As the archive does."""
        began = time.perf_counter()
        path = super().write(topic, rows)
        self.ended, self.ended_cpu = time.perf_counter(), time.process_time()
        self.seconds += self.ended - began
        self.rows += len(rows)
        return path


def _publish(kafka: KafkaSettings, scale: Scale, progress: Progress) -> None:
    town = Town(TownConfig(inhabitants=scale.inhabitants, past_events=int(scale.events * 1.1)), _OPENS_AT)
    with EventPublisher(kafka, EventCodec(Vocabulary()), linger_ms=5) as publisher:
        done = 0
        for event in town.past():
            if done == scale.events:
                break
            publisher.publish(event)
            done += 1
            if done % 1_000 == 0:
                progress("P5 events published", done, scale.events)
        publisher.flush(timeout_s=60)
    _require_all(done, scale.events)
    progress("P5 events published", 1, 1)


def _options(kafka: KafkaSettings) -> dict[str, Any]:
    """What the ingestor's own consumer is told, the group apart."""
    ingest = IngestSettings()
    return {
        **client_options(kafka, "pinrec-bench"),
        "enable_auto_commit": False,
        "fetch_max_wait_ms": ingest.fetch_max_wait_ms,
        "max_poll_records": ingest.max_poll_records,
        "metrics_enabled": False,
    }


def _require_all(seen: int, events: int) -> None:
    if seen != events:
        raise BenchmarkError(f"{seen} of {events} events were read")


def _stages(ours: Sequence[Repeat], bare: Sequence[Repeat]) -> list[Stage]:
    """Where an event's time goes, in microseconds."""

    def median(times: list[float]) -> float:
        return rounded(summary(times)[0] * 1e6)

    stages = {
        "poll and json.loads (the baseline's whole)": median([r.seconds / r.events for r in bare]),
        "poll, decode, check and build rows": median([(r.seconds - r.store - r.archive) / r.events for r in ours]),
        "store: merge histories, LMDB transaction": median([r.store / r.events for r in ours]),
        "archive: Parquet file, flushed": median([r.archive / r.events for r in ours]),
    }
    return [Stage(name=name, value=value, unit="us/event") for name, value in stages.items()]
