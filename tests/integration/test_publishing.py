"""Writing to a real broker, and what other clients see and write."""

import base64
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from confluent_kafka import Producer
from kafka import KafkaConsumer, TopicPartition
from kafka.consumer.fetcher import ConsumerRecord

from pinrec.config import Vocabulary
from streaming.config import KafkaSettings
from streaming.dead_letters import publish_dead_letter, read_dead_letters
from streaming.logs import derive_vocabulary, read_log
from streaming.publisher import EventPublisher, PublishError
from streaming.replay import Pace, Replay
from streaming.schema import BadEventError, Deletion, EventCodec, ItemUpdate, UserEvent
from streaming.topics import (
    KafkaUnreachableError,
    TopicMismatchError,
    admin_client,
    client_options,
    cluster_id,
    create_topics,
)

pytestmark = pytest.mark.broker
CODEC = EventCodec(Vocabulary())


def event(user_id: str, number: int = 0) -> UserEvent:
    return UserEvent(user_id=user_id, item_id=f"i{number}", action="click", surface="home", timestamp=number)


def records(kafka: KafkaSettings, topic: str, count: int) -> list[ConsumerRecord]:
    """All of the topic, once it holds `count` records."""
    consumer = KafkaConsumer(**client_options(kafka), enable_auto_commit=False)
    partitions = [TopicPartition(topic, number) for number in sorted(consumer.partitions_for_topic(topic))]
    consumer.assign(partitions)
    consumer.seek_to_beginning()
    found: list[ConsumerRecord] = []
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        ends = consumer.end_offsets(partitions)
        if len(found) >= count and all(consumer.position(each) >= ends[each] for each in partitions):
            break
        for batch in consumer.poll(timeout_ms=50).values():
            found += batch
    consumer.close()
    return found


def test_events_and_a_deletion_keep_their_order_within_a_user(kafka_settings: KafkaSettings) -> None:
    with EventPublisher(kafka_settings, CODEC) as publisher:
        for number in range(20):
            publisher.publish(event("änn", number))
        deleted = publisher.delete_user("änn")
        publisher.flush()
    found = records(kafka_settings, kafka_settings.events, 21)
    decoded = [CODEC.decode(record.key, record.value) for record in found]
    assert [each.item_id for each in decoded[:-1]] == [f"i{number}" for number in range(20)]
    assert decoded[-1] == Deletion("änn")
    assert len({each.event_id for each in decoded[:-1]} - {None}) == 20
    assert (deleted.result().partition, deleted.result().offset) == (found[-1].partition, found[-1].offset)
    # The broker's clock, whatever the event's own time.
    assert all(abs(record.timestamp / 1000 - time.time()) < 120 for record in found)


def test_an_event_of_any_other_client_is_read_like_ours_and_lies_in_the_same_partition(
    kafka_settings: KafkaSettings,
) -> None:
    users = [f"user-{number}" for number in range(12)]
    other = Producer({"bootstrap.servers": kafka_settings.bootstrap, "partitioner": "murmur2_random"})
    with EventPublisher(kafka_settings, CODEC) as publisher:
        for user_id in users:
            own = event(user_id).model_copy(update={"event_id": "own"})
            publisher.publish(own)
            other.produce(kafka_settings.events, key=user_id, value=EventCodec.encode(own)[1])
        publisher.flush()
    assert other.flush(20) == 0
    places: dict[str, list[int]] = {}
    for record in records(kafka_settings, kafka_settings.events, 24):
        decoded = CODEC.decode(record.key, record.value)
        assert decoded == event(decoded.user_id).model_copy(update={"event_id": "own"})
        places.setdefault(decoded.user_id, []).append(record.partition)
    assert set(places) == set(users)
    assert all(len(found) == 2 and len(set(found)) == 1 for found in places.values())
    assert len({found[0] for found in places.values()}) > 1


def test_several_threads_may_publish(kafka_settings: KafkaSettings) -> None:
    with EventPublisher(kafka_settings, CODEC) as publisher:
        threads = [
            threading.Thread(target=lambda user=f"u{number}": [publisher.publish(event(user, i)) for i in range(200)])
            for number in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        publisher.flush()
    found = [CODEC.decode(record.key, record.value) for record in records(kafka_settings, kafka_settings.events, 800)]
    assert len(found) == 800
    for number in range(4):
        assert [each.timestamp for each in found if each.user_id == f"u{number}"] == list(range(200))


def test_what_cannot_be_taken_is_refused_and_nothing_is_sent(kafka_settings: KafkaSettings) -> None:
    bad = [
        event("u").model_copy(update={"action": "poke"}),
        event("u").model_copy(update={"surface": "moon"}),
        event("u", 253_402_300_000),
    ]
    with EventPublisher(kafka_settings, CODEC) as publisher:
        for refused, field in zip(bad, ("action", "surface", "timestamp"), strict=True):
            with pytest.raises(BadEventError) as caught:
                publisher.publish(refused)
            assert caught.value.field == field
        with pytest.raises(BadEventError, match="key"):
            publisher.delete_user("u" * 300)
        with pytest.raises(BadEventError, match=r"bytes; a record takes at most 1048576"):
            publisher.send(kafka_settings.items, "i", ItemUpdate.model_construct(item_id="i", title="x" * 2_000_000))
        publisher.flush()
    assert records(kafka_settings, kafka_settings.events, 0) == []


def test_a_topic_that_is_missing_is_named(kafka_settings: KafkaSettings) -> None:
    absent = kafka_settings.model_copy(update={"events": "absent"})
    with EventPublisher(absent, CODEC, timeout_s=0.5) as publisher, pytest.raises(PublishError, match="topic absent"):
        publisher.publish(event("u")).result(5)


def test_items_are_kept_by_their_key_and_withdrawn_by_null(kafka_settings: KafkaSettings) -> None:
    item = ItemUpdate(
        item_id="i", title="Heat", categories=("crime",), author="ann", numeric={"year": 1995}, embedding=(0.5, -1.0)
    )
    with EventPublisher(kafka_settings, CODEC) as publisher:
        publisher.publish_item(item)
        publisher.delete_item("i")
        publisher.flush()
    put, withdrawn = records(kafka_settings, kafka_settings.items, 2)
    assert (put.key, ItemUpdate.model_validate_json(put.value)) == (b"i", item)
    assert (withdrawn.key, withdrawn.value) == (b"i", None)


def test_a_dead_letter_carries_the_place_the_reason_and_the_bytes(kafka_settings: KafkaSettings) -> None:
    assert read_dead_letters(kafka_settings) == []
    value = b"\xff\x00" * 40_000
    with EventPublisher(kafka_settings, CODEC) as publisher:
        for offset in range(5):
            record = SimpleNamespace(topic="t", partition=3, offset=offset, key=b"\xffkey", value=value)
            publish_dead_letter(publisher, kafka_settings, record, BadEventError("value", "too long"))
        publisher.flush()
        publisher.delete_item("i")
    letters = read_dead_letters(kafka_settings, limit=3)
    assert [letter.offset for letter in letters] == [2, 3, 4]
    assert (letters[0].topic, letters[0].partition, letters[0].field, letters[0].reason) == (
        "t",
        3,
        "value",
        "too long",
    )
    assert letters[0].key == r"\xffkey"
    assert base64.b64decode(letters[0].value or "") == value[: 64 * 1024]


def test_topics_are_made_once_and_a_wrong_number_of_partitions_is_told(kafka_settings: KafkaSettings) -> None:
    create_topics(kafka_settings)
    with admin_client(kafka_settings) as admin:
        described = {
            topic["name"]: len(topic["partitions"])
            for topic in admin.describe_topics([kafka_settings.events, kafka_settings.recommendations])
        }
    assert described == {kafka_settings.events: 4, kafka_settings.recommendations: 4}
    with pytest.raises(TopicMismatchError, match=r"has 4 partitions, the settings say 7; set kafka\.partitions to 4"):
        create_topics(kafka_settings.model_copy(update={"partitions": 7}))


def test_a_cluster_has_one_id(kafka_settings: KafkaSettings) -> None:
    assert cluster_id(kafka_settings) == cluster_id(kafka_settings) != ""


def test_a_kafka_that_does_not_answer_is_told_in_one_sentence() -> None:
    nowhere = KafkaSettings(bootstrap="127.0.0.1:1")
    sentence = r"Kafka does not answer at 127\.0\.0\.1:1 .*; start it, or correct kafka\.bootstrap"
    with pytest.raises(KafkaUnreachableError, match=sentence):
        create_topics(nowhere, timeout_s=0.3)
    with pytest.raises(KafkaUnreachableError, match=sentence):
        EventPublisher(nowhere, CODEC, timeout_s=0.3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (KafkaSettings(), r"kafka\.bootstrap: no address is set"),
        (KafkaSettings(bootstrap="kafka"), r"kafka\.bootstrap: 'kafka' is not host:port"),
        (KafkaSettings(bootstrap="k:1", security={"acks": "0"}), r"kafka\.security\.acks: not a security option"),
    ],
)
def test_settings_no_client_can_use_are_refused(settings: KafkaSettings, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        client_options(settings)


def test_security_reaches_every_client_in_its_own_type() -> None:
    settings = KafkaSettings(bootstrap="k:1", security={"security_protocol": "SSL", "ssl_check_hostname": "false"})
    options = client_options(settings)
    assert (options["security_protocol"], options["ssl_check_hostname"]) == ("SSL", False)


def test_a_replay_keeps_the_order_counts_once_and_stops_when_told(
    kafka_settings: KafkaSettings, tmp_path: Path
) -> None:
    path = tmp_path / "log.csv"
    rows = "\n".join(f"u{number % 3},i{number},click,home,{number * 60}" for number in range(300))
    path.write_text(f"user_id,item_id,action,surface,timestamp\n{rows}\n")
    log = read_log(path)
    told: list[tuple[int, int]] = []
    with EventPublisher(kafka_settings, EventCodec(derive_vocabulary(log))) as publisher:
        done = Replay(log, publisher, progress=lambda *counts: told.append(counts)).run()
        assert (done.published, done.stopped, told[-1]) == (300, False, (300, 300))
        stop = threading.Event()
        # The second event is due in a minute: only the stop ends it.
        waiting = Replay(log, publisher, Pace(times=1.0))
        threading.Timer(0.2, stop.set).start()
        again = waiting.run(stop)
        assert (again.published, again.stopped) == (1, True)
    found = [CODEC.decode(record.key, record.value) for record in records(kafka_settings, kafka_settings.events, 301)]
    assert len({each.event_id for each in found}) == 300
    for user in ("u0", "u1", "u2"):
        times = [each.timestamp for each in found if each.user_id == user][:100]
        assert times == sorted(times)
