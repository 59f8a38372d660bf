"""What training goes on from when a version is refused, taken back, lost or of another kind."""

import functools
import json
import threading
from typing import ClassVar

import numpy as np
import pytest

import streaming.candidates
import streaming.trainer
import streaming.training_catalogue
from pinrec.bundle import LEARNER, MANIFEST, MODEL, BundleError, read_learner
from pinrec.config import ModelConfig
from pinrec.gate import Judgement
from pinrec.items import Catalogue, Item
from pinrec.registry import Registry
from pinrec.verdicts import Refusal
from pinrec.versions import RegistryError
from streaming.checkpoint import CHECKPOINT
from streaming.config import StateSettings
from streaming.training_log import Standing
from tests.archived_log import ArchivedLog
from tests.eventually import eventually
from tests.small_trainer import checkpoint, new_trainer, trainer, without_kafka

LARGER = ModelConfig(width=8, layers=2, heads=2, history=16, stride=8, hash_buckets=64, id_width=8, bag_buckets=16)
ALL = {"holdout_share": 0.0}
WORSE = Refusal(check="recall", figure=0.1, bound=0.2, message="worse")
TAKEN_BACK = Refusal(check="operator", message="wrong prices")


@pytest.fixture(autouse=True)
def _no_kafka(monkeypatch):
    without_kafka(monkeypatch.setattr)


@pytest.fixture
def judge(monkeypatch):
    """A gate that lets all through, or refuses with what is put into the list."""
    refusals = []
    monkeypatch.setattr(streaming.candidates, "judge", lambda *_: Judgement(tuple(refusals)))
    return refusals


def rounds_learnt(registry, version):
    """Of how many rounds a version's weights know: 1 = they were begun anew for it."""
    return int(read_learner(registry.folder(version))["progress"][1])


def rounds(log, training, *events):
    """A round after each so many more events; what they published."""
    published = []
    for count in events:
        log.add(count)
        published.append(training.round())
    return published


# Another version than the one published last


def test_what_was_withdrawn_is_not_gone_on_from_though_the_version_that_serves_cannot_be(state, log, registry):
    """The sizes of the model were changed in between."""
    rounds(log, trainer(state, **ALL), 60)
    training = trainer(state, model=LARGER, **ALL)
    assert rounds(log, training, 50) == ["v000002"]
    registry.rollback(TAKEN_BACK)
    assert rounds(log, training, 30) == ["v000003"]
    assert rounds_learnt(registry, "v000003") == 1
    assert training.status().events == 60 + 30, "without what only the withdrawn version knew"


def test_an_activation_during_a_round_stands_and_the_next_one_goes_on_from_it(state, log, registry, caplog):
    training = trainer(state, **ALL)
    rounds(log, training, 60, 40)
    training._progress = lambda *_: registry.activate("v000001")
    assert rounds(log, training, 30) == [None]
    assert registry.current() == "v000001"
    said = "parent: trained on from v000002, and v000001 was activated meanwhile"
    assert registry.verdict("v000003").reason == said
    assert f"candidate v000003 refused: {said}" in caplog.text
    del training._progress
    assert rounds(log, training, 20) == ["v000004"] == [registry.current()]
    assert rounds_learnt(registry, "v000004") == 2
    assert training.status().events == 60 + 20


def test_what_was_learnt_follows_a_version_that_came_meanwhile_and_that_nobody_can_go_on_from(state, log, registry):
    training = trainer(state, **ALL)
    rounds(log, training, 60)
    copied = []
    training._progress = lambda *_: copied or copied.append(registry.publish(registry.load("v000001")))
    assert rounds(log, training, 40) == [None]
    assert copied == [registry.current()] == ["v000002"]
    del training._progress
    assert rounds(log, training, 0, 0) == ["v000004", None]
    assert rounds_learnt(registry, "v000004") == 2


def test_what_was_withdrawn_stays_so_when_the_sizes_of_the_model_change(state, log, registry):
    training = trainer(state, **ALL)
    rounds(log, training, 60, 50)
    registry.activate("v000001")
    rounds(log, training, 30)
    larger = trainer(state, model=LARGER, **ALL)
    assert rounds(log, larger, 20) == ["v000004"]
    assert larger.status().events == 60 + 30 + 20


@pytest.mark.parametrize("lost", [False, True])
def test_without_its_checkpoint_it_goes_on_from_what_it_published_last(state, log, registry, lost):
    training = trainer(state, **ALL)
    rounds(log, training, 60, 50)
    registry.activate("v000001")
    assert rounds(log, training, 0) == [None]
    path = state.trainer / CHECKPOINT
    path.unlink() if lost else path.write_bytes(b"no tensors")
    training = trainer(state, **ALL)
    assert rounds(log, training, 30) == ["v000003"]
    assert rounds_learnt(registry, "v000003") == 2
    assert training.status().events == 60 + 30, "what was withdrawn is still left out"


# Refused


def test_a_model_of_other_sizes_that_is_refused_in_a_comparison_learns_on_and_is_offered_when_it_knows_more(
    state, log, registry, judge
):
    rounds(log, trainer(state, **ALL), 60)
    training = trainer(state, model=LARGER, **ALL)
    judge.append(WORSE)
    assert rounds(log, training, 40, 0, 0) == [None, None, None]
    assert training.status().refused == 1, "it is not made again while nothing is new"
    assert rounds(log, training, 40) == [None]
    judge.clear()
    assert rounds(log, training, 40) == ["v000004"]
    assert rounds_learnt(registry, "v000004") == 3


def test_a_model_of_other_sizes_whose_weights_are_no_numbers_begins_anew(state, log, registry, judge):
    rounds(log, trainer(state, **ALL), 60)
    training = trainer(state, model=LARGER, **ALL)
    judge.append(Refusal(check="nan", message="model.pos has NaN"))
    assert rounds(log, training, 40) == [None]
    judge.clear()
    assert rounds(log, training, 30) == ["v000003"]
    assert rounds_learnt(registry, "v000003") == 1
    assert training.status().events == 60 + 30


def test_refused_weights_are_left_first_of_all_when_that_failed_before(state, log, registry, judge, monkeypatch):
    training = trainer(state, **ALL)
    rounds(log, training, 60)
    judge.append(WORSE)
    log.add(50)

    def unreadable(*_):
        raise OSError("input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(streaming.trainer, "read_learner", unreadable)
        with pytest.raises(OSError, match="input/output error"):
            training.round()
    judge.clear()
    assert rounds(log, training, 30) == ["v000003"]
    assert rounds_learnt(registry, "v000003") == 2
    assert training.status().events == 60 + 30


def test_a_refusal_that_cannot_be_written_down_holds(state, log, registry, judge, monkeypatch, caplog):
    training = trainer(state, **ALL)
    rounds(log, training, 60)
    judge.append(WORSE)

    def full(*_):
        raise RegistryError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(Registry, "refuse", full)
        assert rounds(log, training, 50) == [None]
    assert "candidate v000002: its refusal cannot be written down: no space left" in caplog.text
    judge.clear()
    assert rounds(log, training, 30) == ["v000003"]
    assert training.status().events == 60 + 30


# Nothing to compare with


def test_nothing_passes_while_the_version_that_serves_cannot_be_loaded(state, log, registry):
    rounds(log, trainer(state), 60)
    weights = registry.folder("v000001") / MODEL
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1])
    training = trainer(state)
    log.add(40)
    for _ in range(2):
        with pytest.raises(BundleError, match=r"hash: model\.safetensors"):
            training.round()
    assert registry.names() == ["v000001"]
    weights.write_bytes(whole)
    assert training.round() == "v000002"
    assert rounds_learnt(registry, "v000002") == 2, "the events were trained on once"


def test_a_version_that_another_release_made_is_in_nobodys_way(state, log, registry):
    rounds(log, trainer(state), 60)
    path = registry.folder("v000001") / MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 1}))
    assert rounds(log, trainer(state), 40) == ["v000002"]


# Room


@pytest.fixture
def no_loading(monkeypatch):
    """No replica is ever loading anything."""
    monkeypatch.setattr(Registry, "prune", functools.partialmethod(Registry.prune, loading_s=0.0))


def test_lives_that_are_cut_short_fill_no_disk_and_crowd_out_nothing_that_passed(
    state, log, registry, no_loading, monkeypatch
):
    rounds(log, trainer(state), 60, 40, 40)

    class Killed(BaseException):
        pass

    def killed(*_):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Registry, "advance", killed)
        log.add(40)
        for _ in range(5):
            with pytest.raises(Killed):
                trainer(state).round()
    assert registry.names() == ["v000001", "v000002", "v000003", "v000007", "v000008"]
    assert trainer(state, keep_versions=3).round() == "v000009"
    assert registry.names() == ["v000002", "v000003", "v000009"]


def test_the_first_thing_a_restart_deletes_is_not_what_the_watch_would_go_back_to(state, log, registry, no_loading):
    rounds(log, trainer(state), 60, 40, 40, 40, 40)
    seen = {"lists": 300, "impressions": 3_000, "engaged": 300, "nn": 30_000, "en": 3_000, "ee": 300}
    registry.write_outcomes(json.dumps({"positions": {}, "versions": {"v000001": seen}}).encode())
    assert rounds(log, trainer(state, keep_versions=3), 40) == ["v000006"]
    assert registry.names() == ["v000001", "v000004", "v000005", "v000006"]


@pytest.mark.parametrize("named", [{"pinned": "v000001"}, {"split": {"v000001": 0.2}}], ids=["pinned", "split"])
def test_a_version_that_the_deploy_file_names_is_not_deleted(state, log, registry, no_loading, judge, named):
    rounds(log, trainer(state), 60, 40, 40)
    assert rounds(log, trainer(state, keep_versions=3, **named), 40, 40) == ["v000004", "v000005"]
    assert registry.names() == ["v000001", "v000003", "v000004", "v000005"]


def test_nothing_is_deleted_while_the_watch_cannot_look(state, log, registry, no_loading, monkeypatch, caplog):
    rounds(log, trainer(state), 60, 40, 40, 40)
    training = trainer(state, keep_versions=3)

    def unreadable(*_):
        raise RegistryError("not now")

    with monkeypatch.context() as patch:
        patch.setattr(Registry, "read_outcomes", unreadable)
        assert rounds(log, training, 40) == ["v000005"]
    assert registry.names()[0] == "v000001"
    assert "old versions are not deleted, the watch has not looked at them: not now" in caplog.text
    assert rounds(log, training, 40) == ["v000006"]
    assert registry.names() == ["v000004", "v000005", "v000006"]


def test_what_was_withdrawn_is_forgotten_once_it_is_too_old_to_come_again(state, log, registry):
    training = trainer(state, **ALL, max_events=150)
    rounds(log, training, 60, 30)
    registry.activate("v000001")
    rounds(log, training, 30)
    assert len(Standing.taken_from(checkpoint(state)).withdrawn) == 1
    rounds(log, training, 145, 10)
    assert training.status().events == 150
    assert Standing.taken_from(checkpoint(state)).withdrawn == ()


# Items


class Topic:
    """An items topic that holds what a test puts into `now`."""

    now: ClassVar[dict[str, Item]] = {}

    def __init__(self, *_):
        self.items, self.positions, self.complete = {}, {}, True

    def update(self):
        for name in [name for name, item in Topic.now.items() if self.items.get(name) is not item]:
            self.items[name] = Topic.now[name]
        self.positions = {0: len(Topic.now)}
        return True


@pytest.fixture
def items(monkeypatch):
    monkeypatch.setattr(streaming.training_catalogue, "CatalogueView", Topic)
    monkeypatch.setattr(Topic, "now", {f"item-{i}": Item(f"item-{i}", title="about bread") for i in range(30)})
    return Topic.now


def test_after_a_version_of_new_items_alone_no_row_is_made_again(state, log, registry, items, monkeypatch):
    training = trainer(state)
    rounds(log, training, 60)
    made = []
    of = Catalogue.of.__func__
    monkeypatch.setattr(
        Catalogue, "of", classmethod(lambda cls, some, config: (made.append(len(some)), of(cls, some, config))[1])
    )
    items["new"] = Item("new", title="just in")
    assert training.round() == "v000002"
    assert made == [1]
    assert rounds(log, training, 0, 0) == [None, None]
    assert sum(made) == 1
    items["a newer one"] = Item("a newer one", title="at last")
    assert training.round() == "v000003"
    assert sum(made) == 2


def test_a_restart_between_versions_of_new_items_changes_no_order(tmp_path, items):
    ends = []
    begun = dict(items)
    for name in ("whole", "restarted"):
        state = StateSettings(root=tmp_path / name)
        log, registry = ArchivedLog(state), Registry(state.registry)
        items.clear()
        items.update(begun)
        training = trainer(state)
        rounds(log, training, 60)
        for new in ("z", "a"):
            items[new] = Item(new, title="just in")
            if name == "restarted":
                training = trainer(state)
            assert training.round() == registry.current()
        ends.append(registry.load("v000003").catalogue.item_ids)
    assert ends[0] == ends[1]
    assert ends[0][-2:] == ["z", "a"]


def test_new_items_that_are_refused_are_not_offered_again_and_again(state, log, registry, items, judge):
    training = trainer(state)
    rounds(log, training, 60)
    judge.append(WORSE)
    items["new"] = Item("new", title="just in")
    assert rounds(log, training, 0, 0, 0) == [None, None, None]
    assert training.status().refused == 1
    judge.clear()
    assert rounds(log, training, 40) == ["v000003"]
    assert "new" in registry.load("v000003").catalogue.item_ids


# Faults of the place


def test_a_trainer_that_starts_on_a_disk_that_takes_nothing_goes_on_when_it_does(state, log, registry, monkeypatch):
    """Without a checkpoint the first thing it does is to write one."""
    rounds(log, trainer(state), 60)
    (state.trainer / CHECKPOINT).unlink()
    training, stop, blocked = new_trainer(state, interval_s=0.05), threading.Event(), threading.Event()
    save = training._folder.save

    def full(learnt):
        if not blocked.is_set():
            raise OSError("no space left")
        save(learnt)

    monkeypatch.setattr(training._folder, "save", full)
    thread = threading.Thread(target=training.run, args=(stop,))
    thread.start()
    try:
        eventually(lambda: "no space left" in (training.status().error or ""))
        blocked.set()
        log.add(40)
        eventually(lambda: registry.current() == "v000002" and training.status().error is None)
    finally:
        stop.set()
        thread.join(30)
    assert np.isfinite(read_learner(registry.folder("v000002"))["progress"].numpy()).all()
    assert LEARNER in registry.load("v000002").manifest.files
