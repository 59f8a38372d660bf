"""A whole application for tests: the deploy file of one machine, made small, on a broker that runs already."""

import contextlib
import copy
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa
import yaml
from kafka import KafkaConsumer

from pinrec.items import Catalogue, Item
from pinrec.registry import Registry
from serving.client import ClientError, PinRecClient
from serving.cluster import DeployFile
from serving.stack import Stack
from streaming.archive import Archive
from streaming.publisher import EventPublisher
from streaming.registry_of import registry_of
from streaming.schema import EventCodec, ItemUpdate, Recommendation, UserEvent
from streaming.topics import client_options
from tests.eventually import eventually

TOPICS = ("rivers", "bread", "maps", "wool")
ITEMS = 60
PAST_USERS = 20


class RunningApplication:
    """Started by `start`, stopped by `stop`; meanwhile, what a user of it would hold."""

    def __init__(self, root: Path, bootstrap: str) -> None:
        self.root = root
        tag = uuid.uuid4().hex[:8]
        file = DeployFile.read(Path("deploy/local.yaml"))
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            file.config["http_options"]["port"] = probe.getsockname()[1]
        names = ("events", "items", "recommendations", "models", "dead_letters")
        file.override(
            state={"root": str(root), "map_gib": 0.5},
            # Twelve: replicas get partitions by hashing, and of four one replica in eight would get none.
            kafka={"bootstrap": bootstrap, "partitions": 12, **{name: f"{tag}.{name}" for name in names}},
            ingest={"group": tag, "archive_flush_s": 0.2, "session_timeout_ms": 6_000},
            model={"width": 16, "layers": 1, "history": 64, "stride": 16, "hash_buckets": 512, "id_width": 8},
            training={"batch_users": 4, "window": 16, "uniform_negatives": 32, "initial_steps": 20, "round_steps": 4},
            # Versions are looked up at the end of a test, so none is thrown away.
            trainer={"interval_s": 2, "min_events": 150, "keep_versions": 1_000},
            # Models of twenty steps on chance events need not be good.
            gate={"recall_drop": 1, "diversity": 0, "item_share": 1},
            # No more queries wait than a test can ask at once.
            serving={"poll_models_s": 0.2, "event_k": 8, "max_queue": 16},
        )
        self.file, self.stack = file, Stack(file)
        self.before_any_model: dict[str, httpx.Response] = {}

    def start(self) -> None:
        """Start everything, ask before there is a model, publish a past, and wait for the first model."""
        self.stack.start()
        self.stack.deploy()
        self.settings = self.file.settings
        self.http = httpx.Client(base_url=self.file.url, timeout=20)
        self.client = PinRecClient(self.file.url, token=self.stack.token, timeout_s=20)
        self.publisher = EventPublisher(self.settings.kafka, EventCodec(self.settings.vocabulary))
        self._topic = KafkaConsumer(
            self.settings.kafka.recommendations,
            **client_options(self.settings.kafka),
            group_id=None,
            auto_offset_reset="earliest",
        )
        self._received: list[Recommendation] = []
        self.before_any_model = {
            "recommend": self.http.post("/v1/recommendations", json={"user_id": "u1"}),
            "readyz": self.http.get("/readyz"),
            "healthz": self.http.get("/healthz"),
        }
        for number in range(ITEMS):
            topic = TOPICS[number % len(TOPICS)]
            self.publisher.publish_item(
                ItemUpdate(item_id=f"item-{number}", title=f"{topic} {number}", categories=(topic,), created_at=number)
            )
        for number in range(200):
            self.publish(f"past-{number % PAST_USERS}", f"item-{number % 40}", ago_s=2_000 - 10 * number)
        self.publisher.flush()
        eventually(lambda: self.http.get("/readyz").is_success, 120, every_s=0.2)
        # Nobody is owed anything: each test then sees what it causes.
        eventually(lambda: self.history("past-19") and len(self.history("past-19").events) == 10, 60)

    def stop(self) -> None:
        """Stop what was started."""
        for part in ("publisher", "client", "http", "_topic"):
            if hasattr(self, part):
                getattr(self, part).close()
        self.stack.stop()

    @property
    def registry(self) -> Registry:
        return registry_of(self.settings.state)

    @property
    def archive(self) -> Archive:
        return Archive(self.settings.state.archive)

    def event(self, user_id: str, item_id: str, ago_s: float = 0.0, **fields: Any) -> UserEvent:
        """A click on the home surface, unless the fields say otherwise."""
        usual = {"event_id": uuid.uuid4().hex, "action": "click", "surface": "home"}
        return UserEvent(user_id=user_id, item_id=item_id, timestamp=time.time() - ago_s, **(usual | fields))

    def publish(self, user_id: str, item_id: str, ago_s: float = 0.0, **fields: Any) -> UserEvent:
        """Publish an event from Python."""
        event = self.event(user_id, item_id, ago_s, **fields)
        self.publisher.publish(event)
        return event

    def history(self, user_id: str) -> Any:
        """What is known of a user; None where nothing is."""
        try:
            return self.client.user(user_id)
        except ClientError as error:
            if error.status != 404:
                raise
            return None

    def knows(self, *events: UserEvent) -> bool:
        """Whether the histories hold these events."""
        users = {event.user_id for event in events}
        kept = {event.event_id for user in users if (found := self.history(user)) for event in found.events}
        return kept >= {event.event_id for event in events}

    def archived(self, columns: list[str]) -> pa.Table:
        """All archived events."""
        return self.archive.read(columns=columns)

    def received(self, wanted: Callable[[Recommendation], bool]) -> list[Recommendation]:
        """What the recommendations topic has brought so far, if it is wanted."""
        for records in self._topic.poll(timeout_ms=100).values():
            self._received += [Recommendation.model_validate_json(record.value) for record in records]
        return [recommendation for recommendation in self._received if wanted(recommendation)]

    def deploy_file(self, **replicas: int) -> Path:
        """This application's deploy file with other numbers of replicas."""
        config = copy.deepcopy(self.file.config)
        for deployment in config["applications"][0]["deployments"]:
            deployment["num_replicas"] = replicas.get(deployment["name"], deployment["num_replicas"])
        path = self.root / "changed.yaml"
        path.write_text(yaml.safe_dump(config))
        return path

    def edition(self, name: str) -> Any:
        """A bundle like the one that serves, whose every title ends in the edition's name."""
        base = self.registry.load(self.registry.current() or "none yet")
        items = [Item(f"item-{i}", f"{TOPICS[i % 4]} {i} {name}", (TOPICS[i % 4],), None, i) for i in range(ITEMS)]
        return type(base).of(
            base.model,
            Catalogue.of(items, base.config),
            base.popularity,
            trained_until=base.manifest.trained_until,
            items_positions=base.manifest.items_positions,
        )


class Callers:
    """Threads that call something again and again; what came back, and what failed."""

    def __init__(self, call: Callable[[int], Any], threads: int = 3) -> None:
        self._call, self._stop = call, threading.Event()
        self.answers: list[Any] = []
        self.of: list[list[Any]] = [[] for _ in range(threads)]
        """Each thread's own, in order."""
        self.failures: list[BaseException] = []
        self._threads = [threading.Thread(target=self._run, args=(number,)) for number in range(threads)]

    def _run(self, number: int) -> None:
        while not self._stop.is_set():
            try:
                self.of[number].append(self._call(number))
                self.answers.append(self.of[number][-1])
            except Exception as failure:
                self.failures.append(failure)
                return
            self._stop.wait(0.02)

    @contextlib.contextmanager
    def calling(self) -> Iterator["Callers"]:
        """Call until the block ends."""
        for thread in self._threads:
            thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            for thread in self._threads:
                thread.join(30)
