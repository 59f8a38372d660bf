"""Refused records: set aside with their bytes and the reason, for a person to read."""

import base64
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Final, Protocol

from kafka import KafkaConsumer, TopicPartition
from kafka.errors import KafkaError
from pydantic import ValidationError

from streaming.config import KafkaSettings
from streaming.publisher import Delivery, EventPublisher
from streaming.schema import BadEventError, DeadLetter
from streaming.topics import client_options, require_listening, unreachable

MAX_KEPT_BYTES: Final = 64 * 1024
MAX_KEPT_KEY: Final = 512


class Record(Protocol):
    """What we need of a consumed record."""

    @property
    def topic(self) -> str:
        """Where it lay."""
        ...

    @property
    def partition(self) -> int:
        """Where it lay."""
        ...

    @property
    def offset(self) -> int:
        """Where it lay."""
        ...

    @property
    def key(self) -> bytes | None:
        """As it was sent."""
        ...

    @property
    def value(self) -> bytes | None:
        """As it was sent."""
        ...


def dead_letter(record: Record, error: BadEventError, clock: Callable[[], float] = time.time) -> DeadLetter:
    """The letter for a record that was refused. A key that is no UTF-8 is shown with escapes."""
    value = record.value
    return DeadLetter(
        topic=record.topic,
        partition=record.partition,
        offset=record.offset,
        field=error.field,
        reason=error.reason,
        key=None if record.key is None else record.key.decode(errors="backslashreplace")[:MAX_KEPT_KEY],
        value=None if value is None else base64.b64encode(value[:MAX_KEPT_BYTES]).decode(),
        refused_at=clock(),
    )


def publish_dead_letter(
    publisher: EventPublisher, kafka: KafkaSettings, record: Record, error: BadEventError
) -> "Future[Delivery]":
    """Write the letter to its topic."""
    letter = dead_letter(record, error)
    return publisher.send(kafka.dead_letters, letter.key, letter)


def read_dead_letters(kafka: KafkaSettings, limit: int = 100, timeout_s: float = 10.0) -> list[DeadLetter]:
    """The newest letters, oldest of them first; at most `limit`.

    Raises:
        KafkaUnreachableError: no broker answered.
    """
    options = client_options(kafka, "pinrec-dead-letters")
    require_listening(kafka)
    deadline = time.monotonic() + timeout_s
    letters: list[DeadLetter] = []
    try:
        consumer = KafkaConsumer(
            **options, bootstrap_timeout_ms=int(timeout_s * 1000), enable_auto_commit=False, fetch_max_wait_ms=100
        )
    except KafkaError as error:
        raise unreachable(kafka, str(error)) from error
    try:
        topic = kafka.dead_letters
        partitions = [TopicPartition(topic, number) for number in sorted(consumer.partitions_for_topic(topic) or ())]
        if not partitions:
            return []
        consumer.assign(partitions)
        firsts, ends = consumer.beginning_offsets(partitions), consumer.end_offsets(partitions)
        for partition in partitions:
            consumer.seek(partition, max(firsts[partition], ends[partition] - limit))
        while time.monotonic() < deadline and any(consumer.position(each) < ends[each] for each in partitions):
            for records in consumer.poll(timeout_ms=200).values():
                letters += [letter for record in records if (letter := _read(record.value)) is not None]
    finally:
        consumer.close()
    return sorted(letters, key=lambda letter: letter.refused_at)[-limit:]


def _read(value: bytes | None) -> DeadLetter | None:
    try:
        return DeadLetter.model_validate_json(value or b"")
    except ValidationError:
        return None  # anybody may write to the topic; what is no letter is none of ours
