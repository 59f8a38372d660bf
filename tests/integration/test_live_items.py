"""A replica's items against a real broker: updates, deletions, restarts, versions that come and go, Kafka away."""

import gc
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pinrec.bundle import Bundle
from pinrec.config import GenerationConfig, Vocabulary
from pinrec.generation import generate, similar
from serving.live_items import LiveItems
from streaming.broker import LocalBroker
from streaming.config import KafkaSettings
from streaming.publisher import EventPublisher
from streaming.schema import EventCodec, ItemUpdate
from streaming.topics import create_topics
from tests.eventually import eventually
from tests.small_bundle import request, small_bundle

pytestmark = [pytest.mark.broker, pytest.mark.timeout(120)]


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return small_bundle()


def as_of(bundle: Bundle, position: int) -> Bundle:
    """The bundle, had its catalogue been read up to there."""
    return replace(bundle, manifest=bundle.manifest.model_copy(update={"items_positions": {0: position}}))


@contextmanager
def following(kafka: KafkaSettings, most: int = 100) -> Iterator[LiveItems]:
    items = LiveItems(kafka, most)
    items.start()
    try:
        yield items
    finally:
        items.stop()


def publish(kafka: KafkaSettings, *updates: ItemUpdate | str) -> None:
    """Items as they are now; of a text the item of that id is deleted."""
    with EventPublisher(kafka, EventCodec(Vocabulary())) as publisher:
        for update in updates:
            if isinstance(update, str):
                publisher.delete_item(update)
            else:
                publisher.publish_item(update)
        publisher.flush()


def found(items: LiveItems, bundle: Bundle, category: str) -> set[str]:
    """What a query for a category is answered with."""
    asked = request(k=200, exclude_seen=False, categories=frozenset({category}))
    config = GenerationConfig(max_k=200)
    return {c.item_id for c in generate(bundle, [asked], config, delta=items.delta(bundle))[0]}


def new(number: int, category: str = "fresh") -> ItemUpdate:
    return ItemUpdate(item_id=f"new-{number}", title=f"about maps {number}", categories=(category,))


def test_every_replica_takes_what_is_published_and_deleted(kafka_settings: KafkaSettings, bundle: Bundle) -> None:
    with following(kafka_settings) as one, following(kafka_settings) as other:
        replicas = (one, other)
        for items in replicas:
            items.prepare(bundle)
        publish(kafka_settings, new(1, "shared"), ItemUpdate(item_id="item-7", categories=("shared",)))
        for items in replicas:
            eventually(lambda items=items: found(items, bundle, "shared") == {"new-1", "item-7"})
        publish(kafka_settings, "new-1", "item-7")
        for items in replicas:
            eventually(lambda items=items: found(items, bundle, "shared") == set())


def test_updates_and_deletions_are_in_the_next_answers(kafka_settings: KafkaSettings, bundle: Bundle) -> None:
    with following(kafka_settings) as items:
        assert items.prepare(bundle) is None, "nothing has happened"
        publish(kafka_settings, new(1), new(2), ItemUpdate(item_id="item-7", categories=("fresh",)))
        eventually(lambda: found(items, bundle, "fresh") == {"new-1", "new-2", "item-7"})
        assert "item-7" not in found(items, bundle, "rare")
        publish(kafka_settings, "new-1", "item-8", new(2, "other"))
        eventually(lambda: found(items, bundle, "fresh") == {"item-7"})
        assert found(items, bundle, "other") == {"new-2"}
        delta = items.delta(bundle)
        assert similar(bundle, "item-8", 5, GenerationConfig(), delta=delta) is None
        report = items.report(bundle)
        assert (report.changed, report.deleted, report.left_out, report.updates) == (2, 1, 0, 6)
        assert items.troubles(bundle) == []
        assert eventually(lambda: items.report(bundle).lag == 0)
        assert report.read_age_s is not None


def test_a_restart_answers_with_all_of_it_from_the_first_answer_on(
    kafka_settings: KafkaSettings, bundle: Bundle
) -> None:
    publish(kafka_settings, *(new(i) for i in range(40)), "new-3", "item-5", *(f"item-{i}" for i in range(90, 120)))
    for _ in range(2):
        with following(kafka_settings) as items:
            delta = items.prepare(bundle)
            assert delta is not None
            assert len(delta) == 39
            assert delta.deleted == 31
            assert found(items, bundle, "fresh") == {f"new-{i}" for i in range(40) if i != 3}


def test_a_version_takes_only_what_came_after_it_and_a_rollback_finds_the_rest_again(
    kafka_settings: KafkaSettings, bundle: Bundle
) -> None:
    publish(kafka_settings, new(1), "item-1", new(2))
    old, newer, newest = as_of(bundle, 0), as_of(bundle, 2), as_of(bundle, 3)
    with following(kafka_settings) as items:
        assert np.sort(items.prepare(old).catalogue.item_ids).tolist() == ["new-1", "new-2"]
        assert items.prepare(newer).catalogue.item_ids == ["new-2"]
        assert items.prepare(newest) is None, "it has all of them"
        publish(kafka_settings, new(3))
        for each, expected in ((old, 3), (newer, 2), (newest, 1)):
            eventually(lambda each=each, n=expected: (d := items.delta(each)) is not None and len(d) == n)
        del old, newer, each
        gc.collect()
        final = as_of(bundle, 4)
        assert items.prepare(final) is None
        back = as_of(bundle, 0)
        delta = items.prepare(back)
        assert sorted(delta.catalogue.item_ids) == ["new-1", "new-2", "new-3"]
        assert delta.deleted == 1, "what was deleted since does not come back with an older version"
        assert items.delta(final) is None


def test_above_the_bound_a_trouble_says_so_and_deletions_still_hold(
    kafka_settings: KafkaSettings, bundle: Bundle
) -> None:
    publish(kafka_settings, new(1), new(2), new(3), "item-4")
    with following(kafka_settings, most=2) as items:
        delta = items.prepare(bundle)
        assert (delta.catalogue.item_ids, delta.deleted) == (["new-1", "new-2"], 1)
        assert items.troubles(bundle) == [
            "1 item updates wait for the next model version; raise serving.delta_items (2)"
        ]


def test_a_record_that_holds_no_item_is_passed_over_and_counted(kafka_settings: KafkaSettings, bundle: Bundle) -> None:
    with EventPublisher(kafka_settings, EventCodec(Vocabulary())) as publisher:
        publisher.send(kafka_settings.items, "another", new(1))
        publisher.publish_item(new(2))
        publisher.flush()
    with following(kafka_settings) as items:
        assert items.prepare(bundle).catalogue.item_ids == ["new-2"]
        assert items.report(bundle).bad == 1


def test_without_the_topic_there_is_nothing_to_wait_for_until_somebody_makes_it(broker: str, bundle: Bundle) -> None:
    tag = uuid.uuid4().hex[:8]
    names = ("events", "items", "recommendations", "models", "dead_letters")
    kafka = KafkaSettings(bootstrap=broker, partitions=1, **{name: f"{tag}.{name}" for name in names})
    with following(kafka) as items:
        assert items.prepare(bundle) is None
        assert items.troubles(bundle) == []
        create_topics(kafka)
        publish(kafka, new(1))
        eventually(lambda: found(items, bundle, "fresh") == {"new-1"})


def test_while_kafka_is_away_answers_go_on_and_afterwards_nothing_is_missing(tmp_path: Path, bundle: Bundle) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with LocalBroker(tmp_path, port=port) as own:
        kafka = own.settings
        create_topics(kafka)
        publish(kafka, new(1))
        with following(kafka) as items:
            assert items.prepare(bundle).catalogue.item_ids == ["new-1"]
            assert own.process is not None
            own.process.kill()
            own.process.wait()
            (trouble,) = eventually(lambda: items.troubles(bundle))
            assert trouble.startswith(f"item updates are not read: Kafka does not answer at 127.0.0.1:{port}")
            assert found(items, bundle, "fresh") == {"new-1"}
            with following(kafka) as started_meanwhile:
                late = as_of(bundle, 0)
                assert started_meanwhile.prepare(late) is None, "better an old catalogue than no answer"
                assert started_meanwhile.troubles(None)
                own.start()
                publish(kafka, new(2), "new-1")
                eventually(lambda: found(items, bundle, "fresh") == {"new-2"})
                eventually(lambda: items.troubles(bundle) == started_meanwhile.troubles(late) == [])
                assert found(started_meanwhile, late, "fresh") == {"new-2"}
