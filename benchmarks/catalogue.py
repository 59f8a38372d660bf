"""P6c: from an item's update to the answers that hold it, and from its deletion to those that do not."""

import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from kafka import KafkaConsumer

from benchmarks.application import Application
from benchmarks.children import in_child
from benchmarks.event_load import listener
from benchmarks.result import BenchmarkError, Result, commit, machine, percentile, rounded, summary
from pinrec.config import Vocabulary
from serving.client import PinRecClient
from serving.stack import Progress
from streaming.config import KafkaSettings
from streaming.publisher import EventPublisher
from streaming.schema import EventCodec, ItemUpdate

P99_MS: Final = 1_000.0
_ITEMS: Final = 50
_REPEATS: Final = 5
_QUICK_ITEMS: Final = 8
_QUICK_REPEATS: Final = 2
_PAUSE_S: Final = 0.25
_PATIENCE_S: Final = 30.0


@dataclass(frozen=True)
class Changes:
    """What to publish, and whom to ask."""

    kafka: KafkaSettings
    url: str
    user_ids: Sequence[str]
    items: int
    seed: int


@dataclass
class Seen:
    """What one round gave, in ms from just before the update was handed to the producer."""

    retrievable: list[float] = field(default_factory=list)
    """Until the first answer that held the new item had come."""
    gone: list[float] = field(default_factory=list)
    """Until the first answer without the deleted item had come."""
    received: list[float] = field(default_factory=list)
    """Until a bare consumer had the record; updates and deletions."""
    asked: int = 0
    """Queries."""


def measure(application: Application, quick: bool, progress: Progress) -> Result:
    """Take the measure on a running application.

    Raises:
        BenchmarkError: a change never showed in the answers.
    """
    began = time.monotonic()
    repeats, items = (_QUICK_REPEATS, _QUICK_ITEMS) if quick else (_REPEATS, _ITEMS)
    host, port = application.http
    rounds: list[Seen] = []
    for i in range(repeats):
        progress("P6c repeats", i, repeats)
        changes = Changes(application.settings.kafka, f"http://{host}:{port}", application.user_ids, items, i)
        rounds.append(in_child(run, changes))
    progress("P6c repeats", 1, 1)
    value, spread = summary([percentile(seen.retrievable + seen.gone, 99) for seen in rounds])
    baseline, bare_spread = summary([percentile(seen.received, 99) for seen in rounds])
    town = application.town
    return Result(
        id="P6c",
        name="item update -> retrievable, deleted -> gone, p99",
        value=value,
        unit="ms",
        baseline_name="a bare consumer has the record, p99",
        baseline=baseline,
        ratio=rounded(value / baseline),
        goal=f"p99 <= {P99_MS:g} ms",
        met=value <= P99_MS,
        spread={"value": spread, "baseline": bare_spread},
        samples={
            "value": [rounded(percentile(seen.retrievable + seen.gone, 99)) for seen in rounds],
            "baseline": [rounded(percentile(seen.received, 99)) for seen in rounds],
        },
        details={
            "changes": sum(len(seen.retrievable) + len(seen.gone) for seen in rounds),
            "retrievable_p50_ms": _over_rounds([seen.retrievable for seen in rounds], 50),
            "retrievable_p99_ms": _over_rounds([seen.retrievable for seen in rounds], 99),
            "gone_p50_ms": _over_rounds([seen.gone for seen in rounds], 50),
            "gone_p99_ms": _over_rounds([seen.gone for seen in rounds], 99),
            "baseline_p50_ms": _over_rounds([seen.received for seen in rounds], 50),
            "queries": sum(seen.asked for seen in rounds),
        },
        protocol=(
            f"{items} new items a round, one after another: each is published (acks=all) with a category of its own, "
            "and a known user's query for that category is sent over and over, one at a time, until an answer holds "
            f"the item; then it is deleted, and asked for until an answer lacks it. Pauses of up to {_PAUSE_S:g} s lie "
            f"between. The town has {town.inhabitants:,} inhabitants, {town.past_events:,} past events and "
            f"{town.items:,} items; nothing is trained in between. The clock runs from just before the update is "
            "handed to the producer to the end of that answer, so it holds the query's own time. The baseline is the "
            "time to a consumer in the load's own process that only takes the same records; it is taken of the same "
            "changes."
        ),
        seconds=round(time.monotonic() - began, 1),
        quick=quick,
        machine=machine(application.settings.state.root),
        commit=commit(),
    )


def run(changes: Changes) -> Seen:
    """One round over HTTP; in a process of its own.

    Raises:
        BenchmarkError: a change never showed in the answers.
    """
    rng = random.Random(changes.seed)
    with PinRecClient(changes.url) as client:

        def answer(category: str) -> set[str]:
            user_id = rng.choice(changes.user_ids)
            found = client.recommend(user_id, k=1, categories=[category], exclude_seen=False)
            return {item.item_id for item in found.items}

        return follow(changes, answer)


def follow(changes: Changes, answer: Callable[[str], set[str]]) -> Seen:
    """Change items one after another, and ask until each change shows.

    Args:
        answer: the items that a query for a category is answered with.

    Raises:
        BenchmarkError: a change never showed.
    """
    rng, seen, received = random.Random(changes.seed), Seen(), dict[tuple[str, bool], float]()
    consumer = listener(changes.kafka.model_copy(update={"partitions": 1}), changes.kafka.items)
    stop = threading.Event()
    receiver = threading.Thread(target=_receive, args=(consumer, received, stop), daemon=True)
    receiver.start()
    sent: dict[tuple[str, bool], float] = {}
    try:
        with EventPublisher(changes.kafka, EventCodec(Vocabulary())) as publisher:
            for number in range(changes.items):
                item_id = f"bench-{changes.seed}-{number}"
                item = ItemUpdate(item_id=item_id, title=f"new {number}", categories=(item_id,), created_at=time.time())
                for deleted, waits in ((False, seen.retrievable), (True, seen.gone)):
                    time.sleep(rng.uniform(0, _PAUSE_S))
                    sent[item_id, deleted] = began = time.perf_counter()
                    _ = publisher.delete_item(item_id) if deleted else publisher.publish_item(item)
                    while (item_id in answer(item_id)) == deleted:
                        seen.asked += 1
                        if time.perf_counter() - began > _PATIENCE_S:
                            what = "deleted, and still in the answers" if deleted else "published, and in no answer"
                            raise BenchmarkError(f"item {item_id} is {what} after {_PATIENCE_S:g} s")
                    waits.append((time.perf_counter() - began) * 1e3)
                    seen.asked += 1
            publisher.flush()
    finally:
        stop.set()
        receiver.join()
        consumer.close()
    seen.received = [(received[change] - at) * 1e3 for change, at in sent.items() if change in received]
    return seen


def _receive(consumer: KafkaConsumer, received: dict[tuple[str, bool], float], stop: threading.Event) -> None:
    while not stop.is_set():
        for records in consumer.poll(timeout_ms=50).values():
            for record in records:
                received[record.key.decode(), record.value is None] = time.perf_counter()


def _over_rounds(rounds: Sequence[Sequence[float]], percent: float) -> float:
    return summary([percentile(values, percent) for values in rounds])[0]
