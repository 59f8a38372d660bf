"""Open-loop load of events and queries side by side, for minutes or hours. Runs in a process of its own."""

import contextlib
import http.client
import json
import random
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final

from benchmarks.application import Application
from benchmarks.children import in_child
from pinrec.config import Vocabulary
from serving.api import Status
from serving.client import ClientError, PinRecClient
from serving.stack import Progress
from streaming.config import KafkaSettings
from streaming.publisher import EventPublisher
from streaming.schema import EventCodec, UserEvent

CONNECTIONS: Final = 8
_PATIENCE_S: Final = 15.0
_TOPICS_OF_A_USER: Final = 3
_IN_VOGUE: Final = 50
_ONE_GOES_AFTER_S: Final = 45.0


@dataclass(frozen=True)
class Load:
    """What to publish and to ask, evenly spaced."""

    kafka: KafkaSettings
    host: str
    port: int
    user_ids: Sequence[str]
    topics: Sequence[Sequence[str]]
    """Item ids by topic."""
    events_per_s: float
    queries_per_s: float
    seconds: float
    k: int = 20
    seed: int = 0


class Tastes:
    """What users act on: items in vogue, of the topics that each user keeps to.

    Of each topic some tens of items are in vogue, those that have been for a middling time the most; every 45 s one
    goes and another comes. So there is something to learn from every minute, and a version that has not seen the newest
    knows a little less: of events drawn evenly from all items no model can know anything, and any two would be told
    apart by chance.
    """

    def __init__(self, topics: Sequence[Sequence[str]], users: int, rng: random.Random) -> None:
        self._topics, self._rng = topics, rng
        few = min(_TOPICS_OF_A_USER, len(topics))
        self._of_user = [rng.sample(range(len(topics)), few) for _ in range(users)]

    def item_id(self, user: int, after_s: float) -> str:
        """An item for a user to act on, so long after the load began."""
        topic = self._topics[self._rng.choice(self._of_user[user])]
        place = int(self._rng.triangular(0, _IN_VOGUE)) + int(after_s / _ONE_GOES_AFTER_S)
        return topic[place % len(topic)]


@dataclass(frozen=True, slots=True)
class Asked:
    """One query: when it was due (epoch s), how long the answer took from then, and which version made it."""

    due: float
    ms: float
    version: str


@dataclass
class Sustained:
    """What came of it."""

    events: int = 0
    asked: list[Asked] = field(default_factory=list)
    """Answered queries, by the moment they were due."""
    failures: list[str] = field(default_factory=list)
    older: int = 0
    """Answers from an older version than an earlier answer on the same connection, which waits for each."""


def watched(
    application: Application,
    name: str,
    rates: tuple[float, float],
    seconds: float,
    look: Callable[[Status], None],
    every_s: float,
    progress: Progress,
) -> Sustained:
    """Load a running application, and look at its status meanwhile.

    Args:
        name: of the measure, for the progress.
        rates: events/s and queries/s.
        look: called with the status every `every_s`; one that cannot be had is left out, as queries are what counts.
    """
    host, port = application.http
    load = Load(application.settings.kafka, host, port, application.user_ids, application.topics, *rates, seconds)
    stop = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        looking = pool.submit(_look, application.url, name, look, every_s, stop, seconds, progress)
        try:
            sustained = in_child(run, load)
        finally:
            stop.set()
        looking.result()
    return sustained


def _look(
    url: str,
    name: str,
    look: Callable[[Status], None],
    every_s: float,
    stop: threading.Event,
    seconds: float,
    progress: Progress,
) -> None:
    began = time.monotonic()
    with PinRecClient(url) as client:
        while not stop.wait(every_s):
            progress(f"{name} under load, s", min(int(time.monotonic() - began), int(seconds)), int(seconds))
            with contextlib.suppress(ClientError):
                look(client.status())


def run(load: Load) -> Sustained:
    """Publish and ask for so long; late queries count from when they were due, and none is left out.

    Raises:
        PublishError: Kafka did not take an event.
    """
    done, lock = Sustained(), threading.Lock()
    began = time.time() + 0.2
    threads = [
        threading.Thread(target=_ask, args=(load, began, number, done, lock), daemon=True)
        for number in range(CONNECTIONS)
    ]
    for thread in threads:
        thread.start()
    done.events = _publish(load, began)
    for thread in threads:
        thread.join()
    done.asked.sort(key=lambda asked: asked.due)
    return done


def _publish(load: Load, began: float) -> int:
    rng = random.Random(load.seed)
    tastes = Tastes(load.topics, len(load.user_ids), rng)
    surfaces = Vocabulary().surfaces
    count = round(load.events_per_s * load.seconds)
    with EventPublisher(load.kafka, EventCodec(Vocabulary())) as publisher:
        for i in range(count):
            due = began + i / load.events_per_s
            _until(due)
            user = rng.randrange(len(load.user_ids))
            publisher.publish(
                UserEvent(
                    event_id=f"sustained-{load.seed}-{began:.0f}-{i:08d}",
                    user_id=load.user_ids[user],
                    item_id=tastes.item_id(user, due - began),
                    action=rng.choice(("impression", "click", "click", "save")),
                    surface=rng.choice(surfaces),
                    timestamp=due,
                )
            )
        publisher.flush(timeout_s=60)
    return count


def _ask(load: Load, began: float, number: int, done: Sustained, lock: threading.Lock) -> None:
    rng = random.Random(f"{load.seed} {number}")
    connection = http.client.HTTPConnection(load.host, load.port, timeout=_PATIENCE_S)
    headers = {"Content-Type": "application/json"}
    newest = ""
    for i in range(number, round(load.queries_per_s * load.seconds), CONNECTIONS):
        due = began + i / load.queries_per_s
        _until(due)
        body = json.dumps({"user_id": rng.choice(load.user_ids), "k": load.k})
        failure, version = None, ""
        try:
            status, content = _post(connection, body, headers)
            if status == http.client.OK:
                answer = json.loads(content)
                version = answer["model_version"]
                if len(answer["items"]) != load.k:
                    failure = f"{len(answer['items'])} items instead of {load.k}"
            else:
                failure = f"{status}: {content[:200].decode(errors='replace')}"
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            failure = f"{type(error).__name__}: {error}"
        with lock:
            if failure:
                done.failures.append(failure)
            else:
                done.asked.append(Asked(due, (time.time() - due) * 1e3, version))
                done.older += version < newest
        newest = max(newest, version)
    connection.close()


def _post(connection: http.client.HTTPConnection, body: str, headers: dict[str, str]) -> tuple[int, bytes]:
    for again in (True, False):
        try:
            connection.request("POST", "/v1/recommendations", body, headers)
            response = connection.getresponse()
            return response.status, response.read()
        except (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError):
            # A kept connection may be closed between two answers, as HAProxy does with a new configuration.
            connection.close()
            if not again:
                raise
    raise AssertionError


def _until(due: float) -> None:
    if (early := due - time.time()) > 0:
        time.sleep(early)
