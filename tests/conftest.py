"""What tests share: one real broker for the whole run, and topics of their own for each test."""

import os
import signal
import uuid
from collections.abc import Iterator

import pytest

# Before torch or FAISS is imported: their thread pools spin against each other, and tiny tests take ten times as long.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# As `pinrec` does before Ray is imported, so that Ray listens on loopback.
os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
# Who is started in the background has Ctrl-C ignored, and so have its children: they could not be told to stop by it.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

from streaming.broker import LocalBroker
from streaming.config import KafkaSettings
from streaming.topics import create_topics


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a real Kafka broker, started once; a test that kills brokers starts its own."""
    with LocalBroker(tmp_path_factory.mktemp("broker"), port=None) as running:
        yield running.bootstrap


@pytest.fixture
def kafka_settings(broker: str) -> KafkaSettings:
    """Settings with topics that no other test uses. The topics exist."""
    tag = uuid.uuid4().hex[:8]
    names = ("events", "items", "recommendations", "models", "dead_letters")
    settings = KafkaSettings(bootstrap=broker, partitions=4, **{name: f"{tag}.{name}" for name in names})
    create_topics(settings)
    return settings
