import shutil
import threading

import pytest
import torch
from kafka import KafkaProducer

from pinrec.bundle import read_learner
from pinrec.config import GenerationConfig, ModelConfig, TrainingConfig, Vocabulary
from pinrec.dataset import EventColumns
from pinrec.evaluation import prequential
from pinrec.hashing import hash_id
from pinrec.items import Catalogue, Item
from pinrec.registry import Registry
from pinrec.versions import RegistryError
from streaming.config import KafkaSettings, StateSettings, TrainerSettings
from streaming.publisher import EventPublisher
from streaming.schema import EventCodec, ItemUpdate, ModelAnnouncement
from streaming.trainer import Trainer
from streaming.training_log import COLUMNS, Standing
from tests.archived_log import ITEMS, ArchivedLog
from tests.eventually import eventually
from tests.ingest_world import whole_log

pytestmark = pytest.mark.broker

VOCABULARY = Vocabulary()
MODEL = ModelConfig(width=16, layers=1, heads=2, history=32, stride=8, hash_buckets=256, id_width=8, bag_buckets=64)
TRAINING = TrainingConfig(batch_users=4, window=8, uniform_negatives=16, initial_steps=6, round_steps=4)
GENERATION = GenerationConfig()
NOWHERE = KafkaSettings(bootstrap="127.0.0.1:9")


def trainer(state, kafka, model=MODEL, **settings):
    """A trainer that has just started."""
    started = Trainer(
        state=state,
        kafka=kafka,
        vocabulary=VOCABULARY,
        model=model,
        training=TRAINING,
        generation=GENERATION,
        trainer=TrainerSettings(**{"interval_s": 0.05, "min_events": 40, "holdout_share": 0.0} | settings),
    )
    started.resume()
    return started


def standing(state):
    """Where training stood when a learner's state was written."""
    return Standing.taken_from(dict(state))


def same_state(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def blocked(state):
    """The registry's folder as one that takes nothing; returns the way back."""
    claims = state.registry / "claims"
    shutil.rmtree(claims)
    claims.write_text("in the way")
    return claims.unlink


def publish_items(kafka, *items, withdraw=()):
    with EventPublisher(kafka, EventCodec(VOCABULARY)) as publisher:
        for item_id, title in items:
            publisher.publish_item(ItemUpdate(item_id=item_id, title=title, created_at=1_760_000_000.0))
        for item_id in withdraw:
            publisher.delete_item(item_id)
        publisher.flush()


def test_the_first_model_waits_for_enough_engaged_events(state, log, registry, kafka_settings):
    training = trainer(state, kafka_settings)
    assert training.round() is None, "nothing is archived"
    log.add(100, action="impression")
    log.add(39, action="click")
    assert training.round() is None
    assert registry.current() is None
    log.add(1, action="click")
    assert training.round() == registry.current() == "v000001"
    assert training.status().version == "v000001"
    assert training.status().events == 140


def test_a_version_is_announced(state, log, kafka_settings):
    log.add(100)
    training = trainer(state, kafka_settings)
    training.round()
    models = kafka_settings.model_copy(update={"events": kafka_settings.models, "partitions": 1})
    (record,) = whole_log(models)[0]
    announcement = ModelAnnouncement.model_validate_json(record.value)
    assert (record.key, announcement.version) == (b"v000001", "v000001")
    assert announcement.trained_until == training.status().trained_until == 1_760_000_000.0 + 30 * 100


def test_nothing_is_published_when_nothing_changed(state, log, registry, kafka_settings):
    log.add(100)
    training = trainer(state, kafka_settings)
    training.round()
    assert training.round() is None
    log.add(30, action="impression")
    assert training.round() is None, "nobody engaged with anything"
    assert trainer(state, kafka_settings).round() is None, "nor after a restart"
    log.add(1, action="save")
    assert training.round() == "v000002"
    assert [info.version for info in registry.versions()] == ["v000001", "v000002"]


def test_a_restart_goes_on_exactly_where_training_stood(tmp_path, kafka_settings):
    """The same weights, optimiser and sketch as without the restart: no event was trained on twice or skipped."""
    ends = []
    for name, restarts in (("without", False), ("with", True)):
        state = StateSettings(root=tmp_path / name)
        log = ArchivedLog(state)
        training = trainer(state, kafka_settings)
        for _ in range(3):
            log.add(90)
            if restarts:
                training = trainer(state, kafka_settings)
            assert training.round()
        ends.append(read_learner(Registry(state.registry).folder("v000003")))
    without, restarted = ends
    assert standing(without).positions == dict(enumerate(log.next))
    assert same_state(without, restarted)


HALF = {"holdout_share": 0.5}


def test_both_versions_predict_what_neither_was_trained_on(state, log, registry, kafka_settings):
    log.add(160)
    training = trainer(state, kafka_settings, **HALF)
    training.round()
    first = registry.versions()[0].metrics
    assert first["prequential_events"] > 0
    assert first["candidate_recall@10"] >= 0
    assert "recall@10" not in first, "nothing served before the first version"
    log.add(80)
    training.round()
    metrics = registry.versions()[1].metrics
    reach = standing(read_learner(registry.folder("v000002")))
    rows = log.archive.read(columns=COLUMNS).to_pylist()
    aside = [row for row in rows if is_held_out(row["user_id"]) and row["arrived"] >= reach.held]
    assert 0 < len(aside) < len(rows) / 2
    held = {(row["partition"], row["offset"]) for row in aside}
    ordered = [row for row in rows if (row["partition"], row["offset"]) not in held] + aside
    events = EventColumns.of_columns({name: [row[name] for row in ordered] for name in COLUMNS[2:]}, VOCABULARY)
    for version, prefix in (("v000001", ""), ("v000002", "candidate_")):
        bundle = registry.load(version)
        expected = prequential(
            bundle.model,
            bundle.table,
            bundle.catalogue,
            events,
            len(rows) - len(aside),
            mode="multi_token",
            steps=GENERATION.steps,
            outcomes=bundle.outcomes,
            search=bundle.index.search,
        )
        assert metrics[f"{prefix}recall@10"] == pytest.approx(expected["recall@10"])
    assert metrics["prequential_events"] == metrics["targets"] == expected["targets"] > 0


def test_what_is_held_out_is_trained_on_when_newer_events_take_its_place(state, log, registry, kafka_settings):
    """Twice what the held-out users did as no held-out users at all: everything but the newest is known."""
    training = trainer(state, kafka_settings, **HALF, holdout_events=5)
    for _ in range(4):
        log.add(60)
        training.round()
    reach = standing(read_learner(registry.folder("v000004")))
    rows = log.archive.read(columns=COLUMNS).to_pylist()
    theirs = [row for row in rows if is_held_out(row["user_id"])]
    aside = [row for row in theirs if row["arrived"] >= reach.held and row["action"] != "impression"]
    assert len(aside) == 5 < len(theirs)
    assert aside == [row for row in theirs if row["action"] != "impression"][-5:]
    assert training.status().trained_until == max(
        row["arrived"] for row in rows if row not in aside and not (row in theirs and row["arrived"] >= reach.held)
    )


def is_held_out(user):
    return hash_id(f"held out {user}") % (1 << 20) < 1 << 19


def test_the_items_topic_rules_the_catalogue(state, log, registry, kafka_settings):
    log.add(100)
    training = trainer(state, kafka_settings)
    training.round()
    named = registry.load("v000001").catalogue
    assert set(named.item_ids) <= {f"item-{i}" for i in range(ITEMS)}, "without updates it is what the events name"
    assert registry.load("v000001").manifest.items_positions == {}
    publish_items(kafka_settings, ("item-1", "Bread at dawn"), ("new", "Just in"), ("item-2", "Old maps"))
    assert training.round() == "v000002", "the catalogue changed, though nobody did anything"
    catalogue = registry.load("v000002").catalogue
    assert dict(zip(catalogue.item_ids, catalogue.titles, strict=True)) == {
        "item-1": "Bread at dawn", "new": "Just in", "item-2": "Old maps",
    }  # fmt: skip
    assert registry.load("v000002").manifest.items_positions == {0: 3}, "a replica goes on from there"
    publish_items(kafka_settings, ("new", "No longer new"), withdraw=["item-2"])
    training.round()
    catalogue = registry.load("v000003").catalogue
    assert dict(zip(catalogue.item_ids, catalogue.titles, strict=True)) == {
        "item-1": "Bread at dawn", "new": "No longer new",
    }  # fmt: skip
    assert registry.load("v000003").manifest.items_positions == {0: 5}


def test_an_item_that_says_something_wrong_is_left_out(state, log, registry, kafka_settings):
    publish_items(kafka_settings, ("good", "A good one"))
    producer = KafkaProducer(bootstrap_servers=kafka_settings.bootstrap)
    for key, value in (
        (b"broken", b"{"),
        (b"nan", b'{"item_id": "nan", "created_at": NaN}'),
        (b"other", b'{"item_id": "another"}'),
    ):
        producer.send(kafka_settings.items, key=key, value=value)
    producer.flush()
    producer.close()
    log.add(100)
    trainer(state, kafka_settings).round()
    assert registry.load("v000001").catalogue.item_ids == ["good"]


def test_an_items_features_reach_the_catalogue(state, log, registry, kafka_settings):
    features = {"title": "Bread", "categories": ("food",), "author": "ann", "numeric": {"year": 1995.0}}
    with EventPublisher(kafka_settings, EventCodec(VOCABULARY)) as publisher:
        publisher.publish_item(ItemUpdate(item_id="whole", **features))
        publisher.flush()
    log.add(100)
    trainer(state, kafka_settings).round()
    found = registry.load("v000001")
    (bag,) = Catalogue.of([Item("whole", **features)], found.config).bags
    assert found.catalogue.bags[found.catalogue.row("whole")].tolist() == bag.tolist()
    assert (bag > 0).sum() == 7


def test_what_deleted_users_did_is_dropped(state, log, kafka_settings):
    log.add(150)
    training = trainer(state, kafka_settings)
    training.round()
    assert (theirs := log.of(3)) > 0
    log.forget(3)
    log.add(10)
    training.round()
    assert training.status().events == 160 - theirs
    log.add(20)
    training.round()
    assert training.status().events == 180 - theirs
    assert log.of(3) > 0, "what they did after they came back counts"


def test_a_registry_that_takes_nothing_leaves_the_old_version_and_the_next_round_succeeds(
    tmp_path, kafka_settings, caplog
):
    ends = []
    for name, breaks in (("whole", False), ("broken", True)):
        state = StateSettings(root=tmp_path / name)
        log, registry = ArchivedLog(state), Registry(state.registry)
        log.add(100)
        training = trainer(state, kafka_settings)
        training.round()
        log.add(50)
        if breaks:
            mend = blocked(state)
            with pytest.raises(RegistryError, match="cannot be written"):
                training.round()
            assert registry.current() == "v000001"
            mend()
        assert training.round() == registry.current() == "v000002"
        ends.append(read_learner(registry.folder("v000002")))
    assert same_state(*ends), "the events of the round that failed were trained on once"


def test_a_changed_catalogue_is_published_after_a_round_that_failed(state, log, registry, kafka_settings):
    log.add(100)
    training = trainer(state, kafka_settings)
    training.round()
    publish_items(kafka_settings, ("new", "Just in"))
    mend = blocked(state)
    with pytest.raises(RegistryError):
        training.round()
    mend()
    assert training.round() == "v000002"
    assert registry.load("v000002").catalogue.item_ids == ["new"]


def test_it_runs_until_it_is_told_to_stop_and_notes_what_fails(state, log, registry, kafka_settings):
    training = trainer(state, kafka_settings)
    stop = threading.Event()
    thread = threading.Thread(target=training.run, args=(stop,))
    thread.start()
    try:
        eventually(lambda: training.status().phase == "waiting for events")
        log.add(100)
        eventually(lambda: registry.current() == "v000001")
        mend = blocked(state)
        log.add(20)
        eventually(lambda: "cannot be written" in (training.status().error or ""))
        mend()
        eventually(lambda: registry.current() == "v000002" and training.status().error is None)
    finally:
        stop.set()
        thread.join(30)
    assert not thread.is_alive()


def test_training_goes_on_while_kafka_is_down(state, log, registry, kafka_settings):
    publish_items(kafka_settings, ("item-1", "Bread at dawn"), ("item-2", "Old maps"))
    log.add(100)
    trainer(state, kafka_settings).round()
    log.add(30)
    assert trainer(state, NOWHERE).round() == registry.current() == "v000002"
    catalogue = registry.load("v000002").catalogue
    assert catalogue.titles == ["Bread at dawn", "Old maps"], "what was known of the items is not forgotten"


@pytest.mark.parametrize("fault", ["other sizes", "no learner"])
def test_a_version_that_cannot_be_gone_on_from_is_left_and_training_begins_anew(
    state, log, registry, kafka_settings, fault, tmp_path
):
    model = MODEL.model_copy(update={"layers": 2}) if fault == "other sizes" else MODEL
    log.add(100)
    trainer(state, kafka_settings).round()
    if fault == "no learner":
        registry.publish(registry.load("v000001"))
        shutil.rmtree(state.trainer)
    training = trainer(state, kafka_settings, model)
    version = training.round()
    assert version == registry.current() != "v000001"
    never_before = StateSettings(root=tmp_path / "never before")
    shutil.copytree(state.archive, never_before.archive)
    trainer(never_before, kafka_settings, model).round()
    found, anew = (
        read_learner(r.folder(v)) for r, v in ((registry, version), (Registry(never_before.registry), "v000001"))
    )
    assert {name for name in found if not torch.equal(found[name], anew[name])} <= {"trainer.standing"}
