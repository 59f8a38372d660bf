"""What ingest tests share: a log of events, a producer, ingestors in other processes, and the comparison at the end."""

import contextlib
import csv
import gzip
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from kafka import KafkaConsumer, KafkaProducer, TopicPartition

from pinrec.config import Action, Vocabulary
from pinrec.hashing import hash_id
from pinrec.history import HistoryEvent
from streaming.archive import Archive
from streaming.config import IngestSettings, KafkaSettings
from streaming.schema import BadEventError, Deletion, EventCodec
from streaming.stores.lmdb import LmdbSequenceStore
from tests.reference_store import ReferenceStore

KUAIRAND = Path("../shared/data/kuairand_pure/interactions.csv.gz")
LIMIT, STRIDE = 64, 16
Message = tuple[bytes | None, bytes | None]


def eventually(condition: Callable[[], Any], within_s: float = 60.0) -> Any:
    """The first true value of the condition; fails when the time is up."""
    deadline = time.monotonic() + within_s
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {within_s:.0f} s"
        time.sleep(0.02)
    return value


def message(**fields: Any) -> Message:
    """(key, value) of a record."""
    return fields["user_id"].encode(), json.dumps(fields).encode()


def real_log(count: int) -> tuple[Vocabulary, list[Message]]:
    """The first rows of KuaiRand."""
    with gzip.open(KUAIRAND, "rt") as file:
        rows = [row for row, _ in zip(csv.DictReader(file), range(count), strict=False)]
    vocabulary = Vocabulary(
        actions=tuple(Action(name=name) for name in sorted({row["action"] for row in rows})),
        surfaces=tuple(sorted({row["surface"] for row in rows})),
    )
    return vocabulary, [message(**(row | {"timestamp": float(row["timestamp"])})) for row in rows]


def made_log(count: int, seed: int = 0) -> tuple[Vocabulary, list[Message]]:
    """Ties in time, duplicates, events a little late, a few broken ones; windows that move on."""
    rng = random.Random(seed)
    messages: list[Message] = []
    for i in range(count):
        user = f"user-{rng.randrange(150)}"
        late = rng.choice([0, 0, 0, 40])
        event = message(
            event_id=f"e{i:06d}",
            user_id=user,
            item_id=f"item-{rng.randrange(500)}",
            action=rng.choice(["impression", "click", "save"]),
            surface="home",
            timestamp=1_700_000_000.0 + i // 3 - late,
        )
        messages.append(event)
        if rng.random() < 0.03:
            messages.append(event)
        if rng.random() < 0.002:
            messages.append((user.encode(), b"{broken"))
    return Vocabulary(), messages[:count]


def publish(kafka: KafkaSettings, messages: Sequence[Message]) -> None:
    """Write to the event topic, as any client may; returns when Kafka has acknowledged all."""
    producer = KafkaProducer(
        bootstrap_servers=kafka.bootstrap,
        acks="all",
        enable_idempotence=True,
        linger_ms=5,
        max_request_size=2_000_000,
        reconnect_backoff_max_ms=500,
    )
    try:
        sent = [producer.send(kafka.events, key=key, value=value) for key, value in messages]
        producer.flush(timeout=90)
        for future in sent:
            future.get(timeout=30)
    finally:
        producer.close(timeout=5)


def whole_log(kafka: KafkaSettings) -> dict[int, list[Any]]:
    """All records of the event topic, by partition."""
    consumer = KafkaConsumer(
        bootstrap_servers=kafka.bootstrap, enable_auto_commit=False, auto_offset_reset="earliest", fetch_max_wait_ms=20
    )
    try:
        partitions = [TopicPartition(kafka.events, p) for p in range(kafka.partitions)]
        consumer.assign(partitions)
        ends = consumer.end_offsets(partitions)
        records: dict[int, list[Any]] = {p: [] for p in range(kafka.partitions)}
        while any(consumer.position(partition) < ends[partition] for partition in partitions):
            for partition, more in consumer.poll(timeout_ms=500).items():
                records[partition.partition] += more
        return records
    finally:
        consumer.close()


class World:
    """One event topic, one state folder, and ingestors that come and go."""

    def __init__(self, root: Path, kafka: KafkaSettings, vocabulary: Vocabulary, **ingest: Any) -> None:
        self.root, self.kafka, self.vocabulary = root, kafka, vocabulary
        self.ingest = IngestSettings(
            session_timeout_ms=6_000,
            max_poll_records=200,
            archive_rows=400,
            archive_flush_s=0.3,
            group=kafka.events,
            **ingest,
        )
        self.store = LmdbSequenceStore(root / "sequences", LIMIT, STRIDE, map_gib=0.5, readonly=True)

    @contextlib.contextmanager
    def ingestor(self, member: str = "one") -> Iterator["subprocess.Popen[bytes]"]:
        """An ingestor in a process of its own, killed at the end if it still lives."""
        arguments = {
            "root": str(self.root),
            "kafka": self.kafka.model_dump(),
            "ingest": self.ingest.model_dump(),
            "vocabulary": self.vocabulary.model_dump(),
            "limit": LIMIT,
            "stride": STRIDE,
            "member": member,
        }
        command = [sys.executable, "-m", "tests.ingestor_process", json.dumps(arguments)]
        log = (self.root / f"{member}.log").open("ab")
        with log, subprocess.Popen(command, stdout=log, stderr=log) as process:
            try:
                yield process
            finally:
                if process.poll() is None:
                    os.kill(process.pid, signal.SIGKILL)

    def partitions_of(self, member: str) -> list[int]:
        """The partitions a member says it has."""
        with contextlib.suppress(FileNotFoundError):
            found: list[int] = json.loads((self.root / f"{member}.json").read_text())["partitions"]
            return found
        return []

    def applied(self) -> int:
        """Offsets applied, over all partitions."""
        return sum(self.store.offset(p) or 0 for p in range(self.kafka.partitions))

    def archived(self) -> int:
        """Offsets archived, over all partitions."""
        return sum(Archive(self.root / "archive").positions(self.kafka.events).values())

    def check(self) -> None:
        """Histories, offsets and archive are exactly what the log says."""
        log = whole_log(self.kafka)
        reference = ReferenceStore(LIMIT, STRIDE)
        codec = EventCodec(self.vocabulary)
        good: set[tuple[int, int]] = set()
        users: set[str] = set()
        for partition, records in log.items():
            for record in records:
                name = f"{record.topic}-{partition:05d}-{record.offset:016d}"
                try:
                    event = codec.decode(record.key, record.value)
                except BadEventError:
                    reference.apply(partition, record.offset, record.offset + 1, [], 0.0)
                    continue
                assert not isinstance(event, Deletion)
                users.add(event.user_id)
                good.add((partition, record.offset))
                kept = HistoryEvent(
                    event.timestamp,
                    event.event_id or name,
                    event.subject,
                    hash_id(event.subject),
                    self.vocabulary.action_index[event.action],
                    self.vocabulary.surface_index[event.surface],
                    False,
                )
                reference.apply(partition, record.offset, record.offset + 1, [(event.user_id, kept)], 0.0)
        everybody = sorted(users)
        ours, theirs = self.store.read(everybody), reference.read(everybody)
        wrong = [u for u, a, b in zip(everybody, ours, theirs, strict=True) if (a and a.packed) != (b and b.packed)]
        assert not wrong, f"{len(wrong)} of {len(everybody)} histories differ, such as that of {wrong[0]}"
        assert self.store.count() == len(everybody)
        for partition, records in log.items():
            assert (self.store.offset(partition) or 0) == len(records)
        archive = Archive(self.root / "archive")
        table = archive.read(columns=["partition", "offset"])
        places = list(zip(table["partition"].to_pylist(), table["offset"].to_pylist(), strict=True))
        assert len(places) == len(set(places))
        assert set(places) == good
        assert archive.gaps() == []
