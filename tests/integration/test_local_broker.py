"""The local broker as a process: its data, its ports, its end."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from kafka import KafkaConsumer, TopicPartition

from pinrec.config import Vocabulary
from streaming import broker_files
from streaming.broker import LocalBroker, PortInUseError
from streaming.broker_files import BrokerError, kafka_jars
from streaming.config import KafkaSettings
from streaming.publisher import EventPublisher
from streaming.schema import EventCodec, UserEvent
from streaming.topics import client_options, create_topics

pytestmark = pytest.mark.broker

OWNER = """
import sys
from pathlib import Path
from streaming.broker import LocalBroker
broker = LocalBroker(Path(sys.argv[1]), port=None).start()
print(broker.process.pid, broker.bootstrap, flush=True)
sys.stdin.read()
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # A killed orphan may stay a zombie where nobody reaps it.
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


def event(number: int) -> UserEvent:
    return UserEvent(
        event_id=f"e{number}", user_id=f"u{number % 7}", item_id="i", action="click", surface="home", timestamp=number
    )


def read_ids(kafka: KafkaSettings, count: int) -> list[str]:
    """Ids of the events of the topic: at least `count`, and whatever else lies there."""
    consumer = KafkaConsumer(**client_options(kafka), enable_auto_commit=False)
    partitions = [TopicPartition(kafka.events, number) for number in range(kafka.partitions)]
    consumer.assign(partitions)
    consumer.seek_to_beginning()
    ends = consumer.end_offsets(partitions)
    found: list[str] = []
    deadline = time.monotonic() + 20
    while (len(found) < count or any(consumer.position(each) < ends[each] for each in partitions)) and (
        time.monotonic() < deadline
    ):
        for records in consumer.poll(timeout_ms=100).values():
            found += [json.loads(record.value)["event_id"] for record in records]
    consumer.close()
    return found


@pytest.fixture(scope="module")
def own_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalBroker]:
    """One that these tests may kill, in a folder whose name is awkward."""
    broker = LocalBroker(tmp_path_factory.mktemp("own") / "a folder, with: späces", port=free_port())
    with broker:
        yield broker


def test_a_terminal_s_ctrl_c_does_not_reach_it(own_broker: LocalBroker) -> None:
    assert own_broker.process is not None
    assert os.getsid(own_broker.process.pid) != os.getsid(0)


def test_a_folder_in_use_is_refused(own_broker: LocalBroker) -> None:
    with pytest.raises(BrokerError, match="another local broker runs on"):
        LocalBroker(own_broker.folder, port=None).start(timeout_s=1.5)
    assert own_broker.running


def test_acknowledged_events_survive_kill_9_once_each_and_a_publisher_bridges_the_gap(own_broker: LocalBroker) -> None:
    kafka = own_broker.settings
    create_topics(kafka)
    with EventPublisher(kafka, EventCodec(Vocabulary())) as publisher:
        for number in range(500):
            publisher.publish(event(number))
        publisher.flush()
        assert own_broker.process is not None
        own_broker.process.kill()
        own_broker.process.wait()
        assert not own_broker.running
        for number in range(500, 600):
            publisher.publish(event(number))
        own_broker.start()
        publisher.flush(60)
    assert sorted(read_ids(own_broker.settings, 600)) == sorted(f"e{number}" for number in range(600))


def test_a_port_in_use_is_named_before_anything_is_started(broker: str, tmp_path: Path) -> None:
    port = int(broker.rpartition(":")[2])
    refused = LocalBroker(tmp_path, port=port)
    with pytest.raises(PortInUseError, match=rf"port {port} .*is in use; .*kafka\.bootstrap to {broker}"):
        refused.start()
    assert refused.process is None


def test_only_loopback_addresses_are_listened_on(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not a loopback address"):
        LocalBroker(tmp_path, host="0.0.0.0")


def test_a_broker_that_dies_at_the_start_says_why(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "meta.properties").write_text("version=1\nnode.id=2\ncluster.id=AAAAAAAAAAAAAAAAAAAAAA\n")
    with pytest.raises(BrokerError, match=r"(?s)ended with status 1 .*broker\.log.*node"):
        LocalBroker(tmp_path, port=None).start()


def test_it_ends_with_the_process_that_started_it_and_another_finds_its_data(tmp_path: Path) -> None:
    owner = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", OWNER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with owner:
        assert owner.stdout is not None
        pid, address = owner.stdout.readline().decode().split()
        kafka = KafkaSettings(bootstrap=address, partitions=2)
        create_topics(kafka)
        with EventPublisher(kafka, EventCodec(Vocabulary())) as publisher:
            publisher.publish(event(1)).result(10)
        os.kill(owner.pid, signal.SIGKILL)
    with LocalBroker(tmp_path, port=None) as again:
        assert not alive(int(pid))
        assert read_ids(kafka.model_copy(update={"bootstrap": again.bootstrap}), 1) == ["e1"]
        assert again.process is not None
        pid = again.process.pid
    assert not alive(pid)


@pytest.fixture
def one_small_jar(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """An empty cache, and of all jars only the smallest to fetch."""
    coordinate = "org.jspecify:jspecify:1.0.0"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "a cache"))
    monkeypatch.setattr(broker_files, "JARS", {coordinate: broker_files.JARS[coordinate]})
    return coordinate


def test_jars_are_fetched_once_by_however_many_at_a_time(one_small_jar: str, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    with ThreadPoolExecutor(3) as pool:
        folders = set(pool.map(lambda _: kafka_jars(lambda done, total: told.append((done, total))), range(3)))
    assert folders == {tmp_path / "a cache" / "pinrec" / "kafka-4.1.0"}
    assert [path.name for path in folders.pop().iterdir()] == ["jspecify-1.0.0.jar"]
    assert told == [(1, 1)]


def test_a_jar_that_is_not_the_expected_one_is_not_kept(
    one_small_jar: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(broker_files, "JARS", {one_small_jar: "0" * 64})
    with pytest.raises(BrokerError, match="not the jar that was expected"):
        kafka_jars()
    assert [path.name for path in (tmp_path / "a cache" / "pinrec").iterdir()] == ["kafka-4.1.0.lock"]
