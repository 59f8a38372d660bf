"""No acknowledged event is lost or counted twice, whatever is killed and when. Real broker, real processes."""

import os
import random
import signal
import socket
import threading
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from pinrec.config import Vocabulary
from streaming.broker import LocalBroker
from streaming.config import KafkaSettings
from streaming.topics import create_topics
from tests.ingest_world import KUAIRAND, Message, World, eventually, made_log, publish, real_log

pytestmark = [pytest.mark.broker, pytest.mark.timeout(300)]

EVENTS = 20_000
KILLS = 10


@pytest.fixture
def log() -> tuple[Vocabulary, list[Message]]:
    """KuaiRand where it is at hand, otherwise a made log of the same length."""
    return real_log(EVENTS) if KUAIRAND.exists() else made_log(EVENTS)


@pytest.fixture
def own_broker(tmp_path: Path) -> Iterator[LocalBroker]:
    """A broker that may be killed, and keeps its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with LocalBroker(tmp_path / "broker", port=port) as broker:
        yield broker


def settled(world: World, events: int) -> bool:
    return world.applied() == events and world.archived() == events


def test_an_ingestor_killed_ten_times_leaves_exactly_the_histories(
    tmp_path: Path, kafka_settings: KafkaSettings, log: tuple[Vocabulary, list[Message]]
) -> None:
    vocabulary, messages = log
    world = World(tmp_path, kafka_settings, vocabulary)
    rng = random.Random(7)
    marks = [len(messages) * i // (KILLS + 1) for i in range(KILLS + 2)]
    for first, last in pairwise(marks[:-1]):
        publisher = threading.Thread(target=publish, args=(kafka_settings, messages[first:last]))
        publisher.start()
        with world.ingestor() as process:
            moment = rng.randint(first + 1, last)
            eventually(lambda moment=moment: world.applied() >= moment)
            os.kill(process.pid, signal.SIGKILL)
        publisher.join()
    with world.ingestor() as process:
        publish(kafka_settings, messages[marks[-2] :])
        eventually(lambda: settled(world, len(messages)))
        process.terminate()
        assert process.wait(30) == 0
    world.check()


def test_a_broker_killed_while_events_flow_loses_and_repeats_nothing(tmp_path: Path, own_broker: LocalBroker) -> None:
    vocabulary, messages = made_log(6_000, seed=1)
    kafka = KafkaSettings(bootstrap=own_broker.bootstrap, partitions=4)
    create_topics(kafka)
    world = World(tmp_path, kafka, vocabulary)
    with world.ingestor() as process:
        publisher = threading.Thread(target=publish, args=(kafka, messages[:4_000]))
        publisher.start()
        eventually(lambda: world.applied() >= 500)
        assert own_broker.process is not None
        os.kill(own_broker.process.pid, signal.SIGKILL)
        own_broker.process.wait()
        own_broker.stop()
        own_broker.start()
        publisher.join()
        publish(kafka, messages[4_000:])
        eventually(lambda: settled(world, len(messages)), 90)
        process.terminate()
        assert process.wait(30) == 0
    world.check()


def test_two_members_share_partitions_and_one_takes_over_from_the_killed(
    tmp_path: Path, kafka_settings: KafkaSettings
) -> None:
    vocabulary, messages = made_log(6_000, seed=2)
    world = World(tmp_path, kafka_settings, vocabulary)
    with world.ingestor("one") as one, world.ingestor("two"):
        publish(kafka_settings, messages[:2_000])
        eventually(lambda: len(world.partitions_of("one")) == 2 and len(world.partitions_of("two")) == 2)
        publisher = threading.Thread(target=publish, args=(kafka_settings, messages[2_000:4_000]))
        publisher.start()
        eventually(lambda: world.applied() > 2_200)
        os.kill(one.pid, signal.SIGKILL)
        publisher.join()
        eventually(lambda: len(world.partitions_of("two")) == 4)
        publish(kafka_settings, messages[4_000:])
        eventually(lambda: settled(world, len(messages)))
    world.check()
