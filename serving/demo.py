"""The demo: the whole loop on one machine, watched from outside like any client would.

source -> Kafka -> application -> Kafka: recommendations -> source (closed loop)
^-- HTTP queries
"""

import contextlib
import random
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Any, Final

import psutil
from kafka import KafkaConsumer
from pydantic import ValidationError

from serving.client import ClientError, PinRecClient
from serving.demo_report import Report
from serving.demo_sources import Source
from serving.stack import Progress, Stack
from streaming.config import KafkaSettings
from streaming.publisher import EventPublisher
from streaming.schema import EventCodec, ItemUpdate, Recommendation, UserEvent
from streaming.simulator import Withdrawal
from streaming.topics import client_options

_TICK_S: Final = 0.05
_QUERIES_PER_S: Final = 5.0
_REMEMBERED: Final = 50_000
_STARTUP_TIMEOUT_S: Final = 900.0
_MARKER: Final = "past-published"


class DemoError(RuntimeError):
    """The demo could not start."""


class Demo:
    """Runs a source against a stack and notes what happens.

    Args:
        stack: not yet started.
        source: of events.
        progress: told of each step of the start.
    """

    def __init__(self, stack: Stack, source: Source, progress: Progress = lambda *_: None) -> None:
        self.stack, self.source, self._progress = stack, source, progress
        self.report = Report()
        self.recent: deque[UserEvent] = deque(maxlen=8)
        self.newest: Recommendation | None = None
        self.taste = ""
        self._engaged = 0
        self.status: dict[str, Any] = {}
        self._codec = EventCodec(source.vocabulary)
        self._published_at: OrderedDict[str, float] = OrderedDict()
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self._crashed: BaseException | None = None
        stack.file.override(vocabulary=source.vocabulary.model_dump())

    def start(self) -> None:
        """Everything up to the first live event: broker, past, application, first model.

        Raises:
            DemoError: no model was live in time, or a part reported why it cannot go on.
        """
        began = time.monotonic()
        self.stack.start(then=self._publish_past)
        self._lap("Kafka, past and Ray", began)
        self.stack.file.override(
            trainer={"min_events": max(2, self._engaged)}, model={"content_width": self.source.content_width}
        )
        self.stack.deploy()
        self._lap("application", began)
        self._await_model()
        self._lap("first model", began)

    def run(self, seconds: float | None, show: Callable[[], None] | None = None) -> dict[str, Any]:
        """Live events, answers and queries for so long, or until interrupted.

        Args:
            seconds: None = until Ctrl-C, or until a log is at its end.
            show: draws the view, a few times a second.

        Returns:
            the report.
        """
        kafka = self.stack.file.settings.kafka
        self._publisher = EventPublisher(kafka, self._codec)
        listener = self._listen(kafka)
        self.report.live_from = time.time()
        self.source.begin(self.stack.root, self.report.live_from)
        self._spawn(self._tick)
        self._spawn(self._watch)
        self._spawn(self._query)
        self._spawn(lambda: self._receive(listener))
        began = time.monotonic()
        try:
            while (seconds is None or time.monotonic() - began < seconds) and not self._crashed:
                if self.source.exhausted and seconds is None:
                    break
                if show:
                    show()
                self._stop.wait(0.25)
        except KeyboardInterrupt:
            pass  # the usual end of a demo without a time limit; the report is still wanted
        finally:
            elapsed = time.monotonic() - began
            self._stop.set()
            for thread in self._threads:
                thread.join(timeout=15)
            with contextlib.suppress(OSError):
                self.source.remember(self.stack.root)
            self._publisher.close()
        if self._crashed:
            raise self._crashed
        return self.report.as_json(elapsed, self.status)

    # Start

    def _publish_past(self) -> None:
        """Publish items and past events once, and count the engaged item events among them."""
        marker = self.stack.root / _MARKER
        if marker.exists():
            about, past = self.source.past()
            for _ in past if self.source.closed_loop else ():  # inhabitants must remember their own past
                pass
            self._engaged = int(marker.read_text())
            return
        engaged = 0
        with EventPublisher(self.stack.file.settings.kafka, self._codec, linger_ms=5) as publisher:
            for item in self.source.items():
                publisher.publish_item(item)
            about, past = self.source.past()
            for done, event in enumerate(past):
                publisher.publish(event)
                action = self._codec.vocabulary.action_index[event.action]
                engaged += event.item_type == "item" and action in self._codec.vocabulary.engaging
                if done % 1_000 == 0:
                    self._progress("past events", done, max(about, done))
            publisher.flush(timeout_s=60)
        self._progress("past events", 1, 1)
        self.source.remember(self.stack.root)
        marker.write_text(str(engaged))
        self._engaged = engaged

    def _await_model(self) -> None:
        deadline = time.monotonic() + _STARTUP_TIMEOUT_S
        with PinRecClient(self.stack.file.url) as client:
            while time.monotonic() < deadline:
                try:
                    status = client.status()
                except ClientError as error:
                    if error.status == 500:
                        raise DemoError(f"the application is broken: {error}") from None
                    time.sleep(0.2)
                    continue
                if status.ready:
                    self._progress("first model", 1, 1)
                    return
                trainer = status.trainer or {}
                if any(ingestor["halted"] for ingestor in status.ingestors):
                    raise DemoError("; ".join(status.degraded))
                if trainer.get("steps"):
                    # One step short: the bar is full when the model is live, not when it is trained.
                    step = min(trainer["step"], trainer["steps"] - 1)
                    self._progress(f"first model: {trainer['phase']}", step, trainer["steps"])
                else:
                    applied = sum(ingestor["applied"] for ingestor in status.ingestors)
                    lag = sum(ingestor["lag"] for ingestor in status.ingestors)
                    self._progress("histories", applied, applied + lag)
                time.sleep(0.2)
        raise DemoError(f"no model was live within {_STARTUP_TIMEOUT_S:.0f} s; see `pinrec status`")

    def _lap(self, name: str, began: float) -> None:
        self.report.startup_s[name] = time.monotonic() - began

    # Live threads

    def _spawn(self, work: Callable[[], None]) -> None:
        def guarded() -> None:
            try:
                work()
            except BaseException as error:  # reaches the main thread, which raises it
                self._crashed = error
                self._stop.set()

        thread = threading.Thread(target=guarded, daemon=True)
        thread.start()
        self._threads.append(thread)

    def _tick(self) -> None:
        engaging = {self._codec.vocabulary.actions[i].name for i in self._codec.vocabulary.engaging}
        while not self._stop.is_set():
            self.taste = self.source.about(self.source.followed)
            for message in self.source.tick(time.time()):
                if isinstance(message, ItemUpdate):
                    self._publisher.publish_item(message)
                    self.report.item_updates += 1
                elif isinstance(message, Withdrawal):
                    self._publisher.delete_item(message.item_id)
                    self.report.item_updates += 1
                else:
                    if message.action in engaging or message.item_type == "query":
                        self._note_published(message.event_id)
                        if message.user_id == self.source.followed:
                            self.recent.append(message)
                    self._publisher.publish(message)
                    self.report.published += 1
            self._stop.wait(_TICK_S)

    def _note_published(self, event_id: str | None) -> None:
        assert event_id is not None, "sources name their events"
        with self.report.lock:
            self._published_at[event_id] = time.time()
            if len(self._published_at) > _REMEMBERED:
                self._published_at.popitem(last=False)

    def _listen(self, kafka: KafkaSettings) -> KafkaConsumer:
        """A consumer that stands at the end of the recommendations topic."""
        consumer = KafkaConsumer(
            kafka.recommendations,
            **client_options(kafka, "pinrec-demo"),
            group_id=None,
            auto_offset_reset="latest",
            enable_auto_commit=False,
            fetch_max_wait_ms=20,
        )
        deadline = time.monotonic() + 10
        while not consumer.assignment() and time.monotonic() < deadline:
            consumer.poll(timeout_ms=100)
        for partition in consumer.assignment():
            consumer.position(partition)
        return consumer

    def _receive(self, consumer: KafkaConsumer) -> None:
        while not self._stop.is_set():
            for records in consumer.poll(timeout_ms=50).values():
                now = time.time()
                for record in records:
                    self._take(Recommendation.model_validate_json(record.value), now)
        consumer.close()

    def _take(self, recommendation: Recommendation, now: float) -> None:
        self.report.received += 1
        self.report.received_degraded += recommendation.degraded
        with self.report.lock:
            published = self._published_at.pop(recommendation.sequence.last_event_id or "", None)
        if published is not None:
            self.report.freshness.add((now - published) * 1e3)
        if recommendation.user_id == self.source.followed:
            self.newest = recommendation
        self.source.offer(recommendation)

    def _query(self) -> None:
        rng = random.Random(0)
        users = self.source.user_ids
        outcomes = list(self.source.vocabulary.outcomes)
        with PinRecClient(self.stack.file.url) as client:
            while not self._stop.is_set():
                began = time.monotonic()
                budget = {rng.choice(outcomes): 1.0} if rng.random() < 0.5 else None
                try:
                    answer = client.recommend(rng.choice(users), k=10, outcomes=budget)
                except (ClientError, ValidationError) as error:
                    self.report.http_failed += 1
                    self.report.failures.append(str(error))
                else:
                    self.report.http_ok += 1
                    self.report.answered_by(answer.model_version)
                    self.report.http_latency.add((time.monotonic() - began) * 1e3)
                self._stop.wait(max(0.0, 1 / _QUERIES_PER_S - (time.monotonic() - began)))

    def _watch(self) -> None:
        trained_until: dict[str | None, float] = {}
        with PinRecClient(self.stack.file.url) as client:
            while not self._stop.is_set():
                with contextlib.suppress(ClientError):
                    status = client.status()
                    self.status = status.model_dump()
                    trainer = status.trainer or {}
                    trained_until[trainer.get("version")] = trainer.get("trained_until") or 0.0
                    # Trained on live events, and serving, be the trainer further by now: the loop has closed.
                    if trained_until.get(status.model_version, 0.0) > self.report.live_from:
                        self.report.trained_live = True
                self.report.peak_memory_gib = max(self.report.peak_memory_gib, resident_gib())
                self._stop.wait(1.0)


def resident_gib() -> float:
    """Memory of this process and all its children, GiB; shared pages are counted once (PSS) where the system says."""
    total = 0
    for process in (psutil.Process(), *psutil.Process().children(recursive=True)):
        with contextlib.suppress(psutil.Error):
            memory = process.memory_full_info()
            total += getattr(memory, "pss", memory.rss)
    return total / 2**30
