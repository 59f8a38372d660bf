"""Serving goes on while a part is down, says so, and what was missed is made up for."""

import os
import signal
import socket
from pathlib import Path

import pytest
import ray

from serving.client import ClientError
from streaming.broker import LocalBroker
from tests.eventually import eventually
from tests.running_application import RunningApplication

pytestmark = [pytest.mark.broker, pytest.mark.serve, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def kafka(tmp_path_factory):
    """A broker that may be killed, always at the same address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with LocalBroker(tmp_path_factory.mktemp("a mortal broker"), port=port) as broker:
        yield broker


@pytest.fixture(scope="module")
def app(kafka, tmp_path_factory):
    application = RunningApplication(tmp_path_factory.mktemp("outages"), kafka.bootstrap)
    application.file.override(serving={"degraded_after_s": 2.0, "poll_models_s": 0.2})
    try:
        application.start()
        yield application
    finally:
        application.stop()


def pid_of(app, part):
    status = app.client.status()
    parts = {
        "trainer": [status.trainer],
        "ingestor": status.ingestors,
        "recommender": status.recommenders,
        "gateway": status.gateways,
    }
    return parts[part][0]["pid"]


def restarted(app, part, killed):
    def elsewhere():
        try:
            return pid_of(app, part) != killed
        except (ClientError, IndexError, TypeError):  # not back yet
            return False

    return elsewhere


@pytest.mark.parametrize("part", ["trainer", "ingestor", "recommender"])
def test_queries_are_answered_while_another_part_is_killed_and_comes_back(app, part):
    victim = pid_of(app, part)
    os.kill(victim, signal.SIGKILL)
    missed = app.publish(f"acts while the {part} is down", "item-9")
    app.publisher.flush()
    while not restarted(app, part, victim)():
        assert len(app.client.recommend("past-3", k=5).items) == 5
    eventually(lambda: app.knows(missed), 90)


@pytest.mark.parametrize("part", ["recommender", "gateway"])
def test_a_killed_replica_comes_back_with_the_current_version(app, part):
    victim = pid_of(app, part)
    os.kill(victim, signal.SIGKILL)
    eventually(restarted(app, part, victim), 90)
    answer = eventually(lambda: app.client.recommend("past-3", k=5), 30)
    assert answer.model_version == app.client.models().current
    status = app.client.status()
    assert {replica["model_version"] for replica in status.gateways + status.recommenders} == {answer.model_version}


def test_without_kafka_answers_go_on_degraded_and_events_are_refused_until_it_is_back(app, kafka):
    assert not app.client.recommend("past-1", k=5).degraded
    before = app.history("past-1")
    kafka.process.kill()
    kafka.process.wait()

    answer = eventually(lambda: (a := app.client.recommend("past-1", k=5)).degraded and a, 60)
    assert answer.source == "model"
    assert len(answer.items) == 5
    assert app.history("past-1").events == before.events
    with pytest.raises(ClientError) as refused:
        app.client.publish([app.event("past-1", "item-50")])
    assert refused.value.status == 503
    assert refused.value.retry_after_s
    assert app.client.status().degraded
    eventually(lambda: any("WARNING" in line and "Kafka does not answer" in line for line in logged("Ingestor")), 60)

    kafka.start()
    eventually(lambda: not app.client.recommend("past-1", k=5).degraded, 90)
    event = app.event("past-1", "item-51")
    eventually(lambda: _published(app, event), 60)
    eventually(lambda: app.knows(event), 60)


def logged(deployment):
    """Lines that the replicas of a deployment have logged so far, where docs/failures.md says."""
    folder = Path(ray._private.worker._global_node.get_logs_dir_path(), "serve")
    files = folder.glob(f"replica_*{deployment}_*.log")
    return [line for file in files for line in file.read_text().splitlines()]


def _published(app, event):
    try:
        return app.client.publish([event])
    except ClientError:  # the publisher has not found the broker again yet
        return None
