"""The topics, and what every Kafka client of this project is told."""

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from kafka import KafkaAdminClient
from kafka.errors import KafkaError, TopicAlreadyExistsError, UnknownTopicOrPartitionError, for_code

from streaming.config import KafkaSettings

MAX_RECORD_BYTES: Final = 1024 * 1024
"""Most that our topics take: room for a dead letter, which holds up to 64 KiB of bytes in base64."""

_DAY_MS: Final = 24 * 3600 * 1000


class KafkaUnreachableError(ConnectionError):
    """No broker answers at the address."""


class TopicMismatchError(ValueError):
    """A topic exists, but not as the settings say."""


def client_options(kafka: KafkaSettings, client_id: str = "pinrec") -> dict[str, Any]:
    """What every kafka-python client is given: address, name and security.

    Raises:
        ValueError: no address is set, or a security option is unknown or not ours to set.
    """
    if kafka.bootstrap is None:
        raise ValueError("kafka.bootstrap: no address is set; name a broker as host:port, or start the local one")
    options: dict[str, Any] = {
        "bootstrap_servers": _addresses(kafka),
        "client_id": client_id,
        # kafka-python waits up to 30 s before it tries a broker again that was away.
        "reconnect_backoff_max_ms": 1_000,
    }
    known = KafkaAdminClient.DEFAULT_CONFIG
    for name, value in kafka.security.items():
        if not name.startswith(("security_", "ssl_", "sasl_")) or name not in known:
            raise ValueError(f"kafka.security.{name}: not a security option of kafka-python")
        options[name] = value.lower() == "true" if isinstance(known[name], bool) else value
    return options


@contextmanager
def admin_client(kafka: KafkaSettings, timeout_s: float = 5.0) -> Iterator[KafkaAdminClient]:
    """An admin client, closed at the end.

    Raises:
        KafkaUnreachableError: no broker answered within the time.
    """
    options = client_options(kafka, "pinrec-admin")
    require_listening(kafka, timeout_s)
    try:
        client = KafkaAdminClient(
            **options, bootstrap_timeout_ms=int(timeout_s * 1000), request_timeout_ms=int(timeout_s * 1000)
        )
    except KafkaError as error:
        raise unreachable(kafka, str(error)) from error
    try:
        yield client
    finally:
        client.close()


def require_listening(kafka: KafkaSettings, timeout_s: float = 5.0) -> None:
    """Return as soon as one of the addresses takes connections.

    kafka-python's own clients retry for half a minute and log each try; a wrong address should be told at once.

    Raises:
        KafkaUnreachableError: none did within the time.
    """
    deadline = time.monotonic() + timeout_s
    reason = ""
    while True:
        for address in _addresses(kafka):
            host, _, port = address.rpartition(":")
            left = max(0.1, deadline - time.monotonic())
            try:
                socket.create_connection((host.strip("[]"), int(port)), timeout=left).close()
            except (OSError, OverflowError) as error:
                reason = str(error)
            else:
                return
        if time.monotonic() + 0.2 >= deadline:
            raise unreachable(kafka, reason)
        time.sleep(0.2)


def unreachable(kafka: KafkaSettings, reason: str) -> KafkaUnreachableError:
    """The one sentence for an address that does not answer."""
    return KafkaUnreachableError(
        f"Kafka does not answer at {kafka.bootstrap} ({reason}); start it, or correct kafka.bootstrap"
    )


def create_topics(kafka: KafkaSettings, bootstrap: str | None = None, timeout_s: float = 30.0) -> None:
    """Create the topics that are missing, and wait until each has a leader.

    Args:
        kafka: names, partitions, replication, security.
        bootstrap: address in place of the one in `kafka`.
        timeout_s: for all of it; the first connection takes at most 5 s of it.

    Raises:
        KafkaUnreachableError: no broker answered.
        TopicMismatchError: the event topic has another number of partitions.
    """
    kafka = kafka.model_copy(update={"bootstrap": bootstrap}) if bootstrap else kafka
    wanted = _topics(kafka)
    with admin_client(kafka, min(timeout_s, 5.0)) as admin:
        present = {topic["name"]: topic for topic in admin.describe_topics(list(wanted)) if not topic["error_code"]}
        missing = {name: topic for name, topic in wanted.items() if name not in present}
        if missing:
            answer = admin.create_topics(missing, timeout_ms=int(timeout_s * 1000), raise_errors=False)
            for topic in answer["topics"]:
                error = for_code(topic["error_code"])
                # Two processes may create them at once.
                if topic["error_code"] and error is not TopicAlreadyExistsError:
                    raise error(f"topic {topic['name']}: {topic['error_message']}")
            admin.wait_for_topics(list(missing), timeout_ms=int(timeout_s * 1000))
        partitions = _partitions(admin, kafka.events)
    if partitions != kafka.partitions:
        raise TopicMismatchError(
            f"kafka.partitions: topic {kafka.events} has {partitions} partitions, the settings say {kafka.partitions}; "
            f"set kafka.partitions to {partitions}, or name another topic"
        )


def cluster_id(kafka: KafkaSettings, timeout_s: float = 5.0) -> str:
    """The cluster's own id: offsets of one cluster mean nothing in another.

    Raises:
        KafkaUnreachableError: no broker answered.
    """
    with admin_client(kafka, timeout_s) as admin:
        return str(admin.describe_cluster()["cluster_id"])


def _topics(kafka: KafkaSettings) -> dict[str, dict[str, Any]]:
    size = {"max.message.bytes": str(MAX_RECORD_BYTES)}
    shapes: dict[str, tuple[int, dict[str, str]]] = {
        # The broker's clock, not the producer's: arrival times then only grow, and a log of old events that is
        # published today is not deleted as too old.
        kafka.events: (kafka.partitions, {"message.timestamp.type": "LogAppendTime"}),
        # A replica that starts with an older version must still find what was deleted since that version was made.
        kafka.items: (1, {"cleanup.policy": "compact", "delete.retention.ms": str(90 * _DAY_MS)}),
        kafka.recommendations: (kafka.partitions, {"retention.ms": str(_DAY_MS)}),
        kafka.models: (1, {}),
        kafka.dead_letters: (1, {}),
    }
    return {
        name: {"num_partitions": partitions, "replication_factor": kafka.replication, "configs": size | configs}
        for name, (partitions, configs) in shapes.items()
    }


def _partitions(admin: KafkaAdminClient, topic: str) -> int:
    (described,) = admin.describe_topics([topic])
    if described["error_code"]:
        raise UnknownTopicOrPartitionError(topic)
    return len(described["partitions"])


def _addresses(kafka: KafkaSettings) -> list[str]:
    addresses = [address.strip() for address in (kafka.bootstrap or "").split(",")]
    for address in addresses:
        host, _, port = address.rpartition(":")
        if not host or not port.isdecimal():
            raise ValueError(f"kafka.bootstrap: {address!r} is not host:port")
    return addresses
