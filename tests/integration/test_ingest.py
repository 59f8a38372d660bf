"""What an ingestor does with events, good and bad; a real broker, the ingestor in a thread of this process."""

import base64
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pinrec.config import Vocabulary
from streaming.archive import Archive
from streaming.config import IngestSettings, KafkaSettings
from streaming.dead_letters import read_dead_letters
from streaming.ingest import GenerationSink, IngestHaltedError, Ingestor
from streaming.schema import EventCodec
from streaming.stores.base import StoreMismatchError
from streaming.stores.lmdb import LmdbSequenceStore
from tests.ingest_world import Message, eventually, message, publish

pytestmark = [pytest.mark.broker, pytest.mark.timeout(120)]


def event(user: str, number: int, **fields: Any) -> Message:
    whole = {"item_id": f"item-{number}", "action": "click", "surface": "home", "timestamp": 1_700_000_000.0 + number}
    return message(user_id=user, **(whole | fields))


class Member:
    """An ingestor in a thread."""

    def __init__(self, ingestor: Ingestor, store: LmdbSequenceStore, archive: Archive) -> None:
        self.ingestor, self.store, self.archive = ingestor, store, archive
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        try:
            self.ingestor.run()
        except Exception as error:
            self.error = error

    def settled(self, offsets: int) -> bool:
        partitions = self.ingestor.status().partitions.values()
        return sum(p.applied for p in partitions) == offsets and sum(p.archived for p in partitions) == offsets


@contextmanager
def member(
    root: Path, kafka: KafkaSettings, generator: GenerationSink | None = None, **ingest: Any
) -> Iterator[Member]:
    settings = IngestSettings(group=kafka.events, session_timeout_ms=6_000, archive_flush_s=0.1, **ingest)
    store = LmdbSequenceStore(root / "sequences", 64, 16, map_gib=0.2)
    archive = Archive(root / "archive")
    ingestor = Ingestor(kafka, settings, EventCodec(Vocabulary()), store, archive, generator, member="one")
    running = Member(ingestor, store, archive)
    running.thread.start()
    try:
        yield running
    finally:
        ingestor.stop()
        running.thread.join(30)
        assert not running.thread.is_alive()
        store.close()


class Sink:
    """Remembers who was to be generated for, and finishes only when told."""

    def __init__(self, finish: bool) -> None:
        self.finish = finish
        self.users: list[str] = []

    def submit(self, partition: int, user_ids: list[str]) -> "Future[None]":
        future: Future[None] = Future()
        self.users += user_ids
        if self.finish:
            future.set_result(None)
        return future


BAD: dict[str, tuple[Message, str]] = {
    "malformed": ((b"ann", b'{"user_id": "ann", '), "value"),
    "not an object": ((b"ann", b"[1, 2]"), "value"),
    "not UTF-8": ((b"ann", b"\xff\xfe"), "value"),
    "missing": (message(user_id="ann", action="click", surface="home", timestamp=1.0), "item_id"),
    "undeclared action": (event("ann", 1, action="clikc"), "action"),
    "undeclared surface": (event("ann", 1, surface="nowhere"), "surface"),
    "far future": (event("ann", 1, timestamp=253_370_764_800.0), "timestamp"),
    "NaN": (event("ann", 1, timestamp=float("nan")), "timestamp"),
    "negative": (event("ann", 1, timestamp=-1.0), "timestamp"),
    "unknown field": (event("ann", 1, itme="x"), "itme"),
    "oversized": (event("ann", 1, query="x" * 70_000), "value"),
    "1 MiB": (event("ann", 1, query="x" * 1_040_000), "value"),
    "another's key": ((b"bob", event("ann", 1)[1]), "key"),
    "empty user": ((b"", event("", 1)[1]), "user_id"),
    "10 kB user": ((b"ann", event("x" * 10_000, 1)[1]), "user_id"),
    "deletion of nobody": ((b"", None), "key"),
}


def test_bad_events_become_dead_letters_and_the_good_around_them_are_applied(
    tmp_path: Path, kafka_settings: KafkaSettings
) -> None:
    messages: list[Message] = [event("ann", 0)]
    for number, (bad, _) in enumerate(BAD.values()):
        messages += [bad, event("ann", number + 1)]
    publish(kafka_settings, messages)
    with member(tmp_path, kafka_settings) as running:
        eventually(lambda: running.settled(len(messages)))
        status = running.ingestor.status()
        (history,) = running.store.read(["ann"])
        assert running.archive.gaps() == []
        archived = running.archive.read()
    assert (status.dead_letters, status.applied, status.halted) == (len(BAD), len(BAD) + 1, None)
    assert history is not None
    assert history.item_ids == [f"item-{number}" for number in range(len(BAD) + 1)]
    assert len(archived) == len(BAD) + 1
    letters = read_dead_letters(kafka_settings)
    assert sorted(letter.field for letter in letters) == sorted(field for _, field in BAD.values())
    assert all(letter.reason and letter.topic == kafka_settings.events for letter in letters)
    assert len({(letter.partition, letter.offset) for letter in letters}) == len(BAD)
    (typo,) = [letter for letter in letters if letter.field == "action"]
    assert json.loads(base64.b64decode(typo.value or ""))["action"] == "clikc"
    assert "click" in typo.reason


def test_a_broken_deploy_halts_ingestion_before_it_is_swallowed(tmp_path: Path, kafka_settings: KafkaSettings) -> None:
    limits: dict[str, Any] = {"min_bad_events": 20, "max_bad_share": 0.5}
    with member(tmp_path, kafka_settings, **limits) as running:
        publish(kafka_settings, [event("ann", number) for number in range(30)])
        eventually(lambda: running.settled(30))
        publish(kafka_settings, [event("ann", 100 + number, action="clikc") for number in range(100)])
        running.thread.join(30)
        assert isinstance(running.error, IngestHaltedError)
        assert "clikc" in (running.ingestor.status().halted or "")
        applied = sum(running.store.offset(p) or 0 for p in range(kafka_settings.partitions))
        letters = len(read_dead_letters(kafka_settings))
        assert 30 <= applied < 130
        assert letters == applied - 30
    publish(kafka_settings, [event("ann", 200)])
    with member(tmp_path, kafka_settings, max_bad_share=1.0) as mended:
        eventually(lambda: mended.settled(131))
        (history,) = mended.store.read(["ann"])
        assert history is not None
        assert history.total == 31


def test_a_deletion_forgets_the_user_everywhere_and_later_events_begin_anew(
    tmp_path: Path, kafka_settings: KafkaSettings
) -> None:
    messages = [event(user, number) for number in range(20) for user in ("ann", "bob")]
    with member(tmp_path, kafka_settings) as running:
        publish(kafka_settings, messages)
        eventually(lambda: running.settled(40))
        publish(kafka_settings, [(b"ann", None)])
        eventually(lambda: running.settled(41))
        assert running.store.read(["ann"]) == [None]
        assert set(running.archive.read()["user_id"].to_pylist()) == {"bob"}
        assert running.archive.purge() == 20
        publish(kafka_settings, [event("ann", 3)])
        eventually(lambda: running.settled(42))
        (history,) = running.store.read(["ann"])
        assert history is not None
        assert history.total == 1
        assert running.archive.read()["user_id"].to_pylist().count("ann") == 1
        assert running.ingestor.status().deleted == 1


def test_owed_generations_are_made_up_for_after_a_restart(tmp_path: Path, kafka_settings: KafkaSettings) -> None:
    never = Sink(finish=False)
    with member(tmp_path, kafka_settings, never) as running:
        publish(kafka_settings, [event(user, 1) for user in ("ann", "bob", "cid")])
        publish(kafka_settings, [event("dan", 2, action="impression")])
        query = {"item_type": "query", "query": "red shoes", "action": "search", "item_id": None}
        publish(kafka_settings, [event("eve", 3, **query)])
        eventually(lambda: running.settled(5) and len(set(never.users)) >= 4)
        assert running.ingestor.status().owed == 4
    assert set(never.users) == {"ann", "bob", "cid", "eve"}
    again = Sink(finish=True)
    with member(tmp_path, kafka_settings, again) as running:
        eventually(lambda: len(set(again.users)) >= 4)
        eventually(lambda: all(p.generated == p.end for p in running.ingestor.status().partitions.values()))
        assert (running.ingestor.status().applied, running.ingestor.status().owed) == (0, 0)
    assert set(again.users) == {"ann", "bob", "cid", "eve"}
    third = Sink(finish=True)
    with member(tmp_path, kafka_settings, third) as running:
        publish(kafka_settings, [event("fay", 9)])
        eventually(lambda: running.settled(6) and third.users)
    assert set(third.users) == {"fay"}


def test_ids_are_derived_where_they_are_absent(tmp_path: Path, kafka_settings: KafkaSettings) -> None:
    publish(kafka_settings, [event("ann", 1), event("ann", 1), event("ann", 2, event_id="mine")])
    with member(tmp_path, kafka_settings) as running:
        eventually(lambda: running.settled(3))
        (history,) = running.store.read(["ann"])
        partition = next(p for p in range(4) if running.store.offset(p))
    assert history is not None
    assert history.event_ids == [f"{kafka_settings.events}-{partition:05d}-{n:016d}" for n in (0, 1)] + ["mine"]


def test_the_store_knows_that_an_idle_log_holds_nothing_new(tmp_path: Path, kafka_settings: KafkaSettings) -> None:
    with member(tmp_path, kafka_settings) as running:
        publish(kafka_settings, [event("ann", 1)])
        eventually(lambda: running.settled(1))
        later = time.time() + 0.5
        assert eventually(lambda: (running.store.as_of() or 0) >= later)
        assert running.store.as_of() <= time.time()
        assert running.ingestor.status().connected


def test_a_partition_that_stands_still_is_noticed_and_read_again(tmp_path: Path, kafka_settings: KafkaSettings) -> None:
    with member(tmp_path, kafka_settings, stalled_after_s=0.5) as running:
        publish(kafka_settings, [event("ann", 1)])
        eventually(lambda: running.settled(1))
        consumer = running.ingestor._consumer
        assert consumer is not None
        consumer.pause(*consumer.assignment())  # the client's silent stall, brought about on purpose
        publish(kafka_settings, [event("ann", 2)])
        eventually(lambda: running.settled(2))
        assert running.ingestor.status().stalls == 1


def test_a_store_of_another_log_is_refused(tmp_path: Path, kafka_settings: KafkaSettings) -> None:
    publish(kafka_settings, [event("ann", 1)])
    with member(tmp_path, kafka_settings) as running:
        eventually(lambda: running.settled(1))
    other = kafka_settings.model_copy(update={"events": kafka_settings.items})
    with member(tmp_path, other) as running:
        running.thread.join(30)
        assert isinstance(running.error, StoreMismatchError)
        assert "state.root" in str(running.error)


def test_the_archive_is_made_again_from_kafka_where_it_was_lost(tmp_path: Path, kafka_settings: KafkaSettings) -> None:
    publish(kafka_settings, [event("ann", number) for number in range(50)])
    with member(tmp_path, kafka_settings) as running:
        eventually(lambda: running.settled(50))
    for path in (tmp_path / "archive").rglob("*.parquet"):
        path.unlink()
    with member(tmp_path, kafka_settings) as running:
        eventually(lambda: running.settled(50))
        assert running.ingestor.status().applied == 0
        assert len(running.archive.read()) == 50
        (history,) = running.store.read(["ann"])
        assert history is not None
        assert history.total == 50
