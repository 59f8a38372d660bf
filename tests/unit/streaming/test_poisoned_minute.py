"""A minute of random events: the gate or the watch catches what it made of the model, and the old version serves on."""

import random
import uuid

import pytest
import torch

from pinrec.bundle import read_learner
from pinrec.config import GateSettings, GenerationConfig, ModelConfig, TrainingConfig, Vocabulary
from pinrec.registry import Registry
from pinrec.verdicts import Refusal
from pinrec.versions import RegistryError
from streaming.archive import Archive, RowBuffer
from streaming.config import KafkaSettings, TrainerSettings
from streaming.trainer import Trainer
from streaming.training_catalogue import TrainingCatalogue

VOCABULARY = Vocabulary()
MODEL = ModelConfig(width=16, layers=1, heads=2, history=32, stride=8, hash_buckets=1024, id_width=16, bag_buckets=64)
USERS, ITEMS = 60, 100
NOWHERE = KafkaSettings(bootstrap="127.0.0.1:9")


class Ring:
    """Everybody walks along a ring of items, each from their own place, until somebody poisons the log."""

    def __init__(self, folder):
        self._archive, self._next, self.now = Archive(folder), 0, 1_760_000_000.0
        self._random = random.Random(2)
        self._at = [self._random.randrange(ITEMS) for _ in range(USERS)]

    def walk(self, events):
        def step(user):
            self._at[user] = (self._at[user] + 1) % ITEMS
            return self._at[user]

        self._add(events, step)

    def poison(self, events):
        self._add(events, lambda _: self._random.choice(range(0, ITEMS, 7)))

    def outcomes(self, version, lists, every):
        """Lists of ten that this version made; one place in so many is clicked. Then a while in which they settle."""
        buffer = RowBuffer(0, self._next, 0.0)

        def row(action, item, request):
            place = (buffer.next, self.now, f"e{buffer.next}", "a reader", f"item-{item}", action, "home", self.now)
            buffer.add((*place, "item", None, None, request, None, False))
            buffer.next += 1

        for _ in range(lists):
            request = f"{version}.{uuid.uuid4().hex}"
            for item in range(10):
                row("impression", item, request)
            for item in range(0, 10, every):
                row("click", item, request)
        self.now += 100
        row("impression", 0, None)
        self._archive.write("events", buffer)
        self._next = buffer.next

    def _add(self, events, item_of):
        buffer = RowBuffer(0, self._next, 0.0)
        for i in range(events):
            self.now += 10
            user = i % USERS
            place = (buffer.next, self.now, f"e{buffer.next}", f"user-{user}", f"item-{item_of(user)}", "click", "home")
            buffer.add((*place, self.now, "item", None, None, None, None, False))
            buffer.next += 1
        self._archive.write("events", buffer)
        self._next = buffer.next


@pytest.fixture
def log(state):
    return Ring(state.archive)


@pytest.fixture(autouse=True)
def _without_kafka(monkeypatch):
    """Nothing here needs it, and to find it down takes seconds."""
    monkeypatch.setattr(TrainingCatalogue, "update", lambda self: None)
    monkeypatch.setattr(Trainer, "_announce", lambda *_: None)


def trainer(state, gate=None):
    """A trainer that has just started."""
    started = Trainer(
        state=state,
        kafka=NOWHERE,
        vocabulary=VOCABULARY,
        model=MODEL,
        training=TrainingConfig(batch_users=16, window=24, uniform_negatives=32, initial_steps=80, round_steps=100),
        generation=GenerationConfig(steps=1, default_outcomes={"click": 1.0}),
        trainer=TrainerSettings(min_events=40),
        gate=gate or GateSettings(),
    )
    started.resume()
    return started


def test_the_gate_catches_a_poisoned_minute_and_training_goes_on_from_before_it(state, log, registry):
    log.walk(1_200)
    training = trainer(state)
    assert training.round() == "v000001"
    log.walk(600)
    assert training.round() == registry.current() == "v000002", "an honest minute passes"
    log.poison(3_000)
    assert training.round() is None
    assert registry.current() == "v000002", "the old version serves on"
    info = registry.versions()[-1]
    assert (info.version, info.state) == ("v000003", "refused")
    assert {refusal.check for refusal in info.verdict.refusals} <= {"earlier_recall", "item_share", "diversity"}
    assert info.metrics["candidate_earlier_recall@10"] < info.metrics["earlier_recall@10"], "it knows less than before"
    status = training.status()
    assert (status.version, status.refused, status.last_refused["version"]) == ("v000002", 1, "v000003")
    for other in (training, trainer(state)):
        assert same_weights(other, registry, "v000002"), "nothing of it is left, in the trainer or after a restart"
    log.walk(600)
    assert training.round() == registry.current() == "v000004"
    assert registry.versions()[-1].metrics["earlier_events"] > 0


@pytest.mark.parametrize("restarts", [False, True])
def test_a_poisoned_round_is_judged_as_such_though_it_was_trained_on_before_it_could_be_published(
    state, log, registry, monkeypatch, restarts
):
    """Its events are not known to the version that serves, however long the learner knows them."""
    limits = GateSettings(item_share=1.0, diversity=0.0)  # leaves it to what was known before
    log.walk(1_800)
    training = trainer(state, limits)
    assert training.round() == "v000001"
    log.poison(3_000)

    def full(*_, **__):
        raise RegistryError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(Registry, "publish", full)
        with pytest.raises(RegistryError, match="no space left"):
            training.round()
    if restarts:
        training = trainer(state, limits)
    assert training.round() is None
    assert registry.current() == "v000001"
    assert [refusal.check for refusal in registry.versions()[-1].verdict.refusals] == ["earlier_recall"]
    assert same_weights(training, registry, "v000001")


def test_the_watch_takes_back_what_passed_the_gate_and_training_goes_on_from_before_it(state, log, registry):
    lenient = GateSettings(recall_drop=1.0, item_share=1.0, diversity=0.0, watch_impressions=200)
    log.walk(1_200)
    training = trainer(state, lenient)
    assert training.round() == "v000001"
    log.outcomes("v000001", lists=40, every=2)
    log.poison(3_000)
    assert training.round() == registry.current() == "v000002", "a gate this wide lets it through"
    log.outcomes("v000002", lists=40, every=10)
    assert training._watch.check() == registry.current() == "v000001"
    assert registry.verdict("v000002").refusals[0].check == "outcomes"
    log.walk(300)
    assert training.round() == registry.current() == "v000003"
    metrics = registry.versions()[-1].metrics
    assert metrics["candidate_earlier_recall@10"] > 0.8 * metrics["earlier_recall@10"] > 0, "it goes on from v000001"
    assert training.status().rollbacks == 1
    assert training.status().outcomes["v000002"]["rate"] == 0.1


def test_a_version_taken_back_while_the_next_one_is_trained_leaves_no_child(state, log, registry):
    log.walk(1_200)
    training = trainer(state)
    training.round()
    log.walk(600)
    training.round()
    log.walk(600)
    rolled_back = []

    def meanwhile(step, steps, loss):
        if not rolled_back:
            rolled_back.append(Registry(registry.url).rollback(Refusal(check="operator", message="wrong prices")))

    training._progress = meanwhile
    assert training.round() is None
    assert registry.current() == "v000001"
    assert registry.versions()[-1].verdict.reason == "parent: trained on from v000002, which was withdrawn"
    assert same_weights(training, registry, "v000001")


def test_a_model_with_nan_is_refused_by_name_and_training_goes_on_from_before_it(state, log, registry, monkeypatch):
    log.walk(1_200)
    training = trainer(state)
    training.round()

    def explode(step, steps, loss):
        with torch.no_grad():
            training._learner.model.tower.mlp[2].bias.fill_(float("nan") if step == steps else 0.0)

    monkeypatch.setattr(training, "_progress", explode)
    log.walk(600)
    assert training.round() is None
    monkeypatch.setattr(training, "_progress", lambda *_: None)
    info = registry.versions()[-1]
    assert (info.state, info.stored, info.verdict.refusals[0].check) == ("refused", False, "nan")
    log.walk(600)
    assert training.round() == registry.current() == "v000003"


def same_weights(training, registry, version):
    mine, theirs = training._learner.state(), read_learner(registry.folder(version))
    return all(torch.equal(mine[name], theirs[name]) for name in mine)
