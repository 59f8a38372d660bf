"""Writing to the topics: durable, in order within a user, and bounded."""

import threading
import uuid
from concurrent.futures import Future, wait
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self

from kafka import KafkaProducer
from kafka.errors import KafkaError, MessageSizeTooLargeError

from streaming.config import KafkaSettings
from streaming.schema import BadEventError, EventCodec, ItemUpdate, Message, UserEvent
from streaming.topics import MAX_RECORD_BYTES, client_options, require_listening, unreachable

MAX_PENDING: Final = 10_000
"""Records that may wait for Kafka's word; `publish` blocks at more."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """Where Kafka put a record."""

    topic: str
    partition: int
    offset: int


class PublishError(RuntimeError):
    """Kafka did not take what was published; the message says why."""


class EventPublisher:
    """Writes events and our other messages. Safe to use from several threads.

    A record counts as written once all in-sync replicas have it (acks=all), and the producer's own retries write it
    once (idempotence). A user's records keep their order: the key is the user, the partitioner Kafka's murmur2.

    Args:
        kafka: address and topics.
        codec: checks each event before it is sent.
        linger_ms: how long a record may wait for others to share its request. At 0 a busy publisher's records share
            requests all the same, those that come while one is under way.
        timeout_s: how long the first connection, and later each call that finds the buffer full, may take.

    Raises:
        KafkaUnreachableError: no broker answered.
    """

    def __init__(self, kafka: KafkaSettings, codec: EventCodec, linger_ms: int = 0, timeout_s: float = 5.0) -> None:
        self._kafka, self._codec, self._timeout_s = kafka, codec, timeout_s
        options = client_options(kafka, "pinrec-publisher")
        require_listening(kafka, timeout_s)
        try:
            self._producer = KafkaProducer(
                **options,
                acks="all",
                enable_idempotence=True,
                linger_ms=linger_ms,
                max_request_size=MAX_RECORD_BYTES,
                max_block_ms=int(timeout_s * 1000),
                bootstrap_timeout_ms=int(timeout_s * 1000),
                allow_auto_create_topics=False,
                metrics_enabled=False,
            )
        except KafkaError as error:
            raise unreachable(kafka, str(error)) from error
        self._room = threading.BoundedSemaphore(MAX_PENDING)
        self._lock = threading.Lock()
        self._pending: set[Future[Delivery]] = set()
        self._failures = 0
        self._first_failure: BaseException | None = None

    def publish(self, event: UserEvent) -> "Future[Delivery]":
        """Send an event, under an id of its own if it has none, so that no retry counts twice.

        Raises:
            BadEventError: it cannot be taken; nothing was sent.
            PublishError: the buffer stayed full, or the topic is not there.
        """
        key, value = EventCodec.encode(with_event_id(self._codec.check(event)))
        return self._send(self._kafka.events, key, value)

    def delete_user(self, user_id: str) -> "Future[Delivery]":
        """Send word to forget a user: a null value under the user's key, in order with the user's events.

        Raises:
            BadEventError: the user id is empty or too long.
        """
        self._codec.decode(user_id.encode(), None)
        return self._send(self._kafka.events, user_id.encode(), None)

    def publish_item(self, item: ItemUpdate) -> "Future[Delivery]":
        """Send an item as it is now."""
        return self.send(self._kafka.items, item.item_id, item)

    def delete_item(self, item_id: str) -> "Future[Delivery]":
        """Send word that an item is withdrawn: a null value under its key."""
        return self._send(self._kafka.items, item_id.encode(), None)

    def send(self, topic: str, key: str | None, message: Message | bytes) -> "Future[Delivery]":
        """Send any of our messages, as JSON or to become JSON.

        Raises:
            BadEventError: it is larger than a record may be.
            PublishError: the buffer stayed full, or the topic is not there.
        """
        if isinstance(message, Message):
            message = message.model_dump_json(exclude_none=isinstance(message, UserEvent)).encode()
        return self._send(topic, None if key is None else key.encode(), message)

    def flush(self, timeout_s: float = 30.0) -> None:
        """Wait until Kafka has all that was published before this call.

        Raises:
            PublishError: something since the last flush was not taken, or is not yet.
        """
        with self._lock:
            pending = set(self._pending)
        late = wait(pending, timeout_s).not_done
        with self._lock:
            failures, first = self._failures, self._first_failure
            self._failures, self._first_failure = 0, None
        if failures:
            raise PublishError(f"Kafka did not take {failures} records; the first: {first}") from first
        if late:
            raise PublishError(
                f"Kafka at {self._kafka.bootstrap} did not confirm {len(late)} records within {timeout_s:.0f} s; "
                "they may still arrive"
            )

    def close(self, timeout_s: float = 10.0) -> None:
        """Send what waits, as far as `timeout_s` allows, and disconnect."""
        self._producer.close(timeout=timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _send(self, topic: str, key: bytes | None, value: bytes | None) -> "Future[Delivery]":
        # kafka-python's own buffer has no bound.
        if not self._room.acquire(timeout=self._timeout_s):
            raise PublishError(f"{MAX_PENDING} records wait already and Kafka takes none; is it running?")
        future: Future[Delivery] = Future()
        with self._lock:
            self._pending.add(future)
        try:
            sent = self._producer.send(topic, key=key, value=value)
        except BaseException as error:
            self._forget(future)
            if isinstance(error, MessageSizeTooLargeError):
                size = len(value or b"")
                raise BadEventError("value", f"{size} bytes; a record takes at most {MAX_RECORD_BYTES}") from None
            if isinstance(error, KafkaError):
                raise PublishError(f"topic {topic} of {self._kafka.bootstrap}: {error}") from error
            raise
        sent.add_callback(self._delivered, future)
        sent.add_errback(self._failed, future)
        return future

    def _delivered(self, future: "Future[Delivery]", metadata: Any) -> None:
        self._forget(future)
        future.set_result(Delivery(metadata.topic, metadata.partition, metadata.offset))

    def _failed(self, future: "Future[Delivery]", error: BaseException) -> None:
        with self._lock:
            self._failures += 1
            self._first_failure = self._first_failure or error
        self._forget(future)
        future.set_exception(PublishError(str(error)))

    def _forget(self, future: "Future[Delivery]") -> None:
        with self._lock:
            self._pending.discard(future)
        self._room.release()


def with_event_id(event: UserEvent) -> UserEvent:
    """The event itself, or a copy under a new id."""
    return event if event.event_id else event.model_copy(update={"event_id": uuid.uuid4().hex})
