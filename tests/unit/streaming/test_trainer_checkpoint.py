"""Training survives its process: what was learnt is neither lost nor learnt twice, and the result is the same.

Kafka is left out: what is archived is all that training needs.
"""

import json
import logging
import multiprocessing
import os
import random
import signal
import threading
import time

import pytest
import torch

from pinrec.bundle import read_learner
from pinrec.registry import Registry
from pinrec.versions import RegistryError
from streaming.checkpoint import CHECKPOINT, PUBLISHED, ROUND, TrainerFolder
from streaming.config import StateSettings
from streaming.training_log import Standing
from tests.archived_log import ArchivedLog
from tests.eventually import eventually
from tests.small_trainer import checkpoint, new_trainer, trainer, without_kafka

CHUNKS, KILLS, EVENTS = 4, 10, 40


@pytest.fixture(autouse=True)
def _no_kafka(monkeypatch):
    without_kafka(monkeypatch.setattr)


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.equal(value, other[name]), name


def standing(state):
    return Standing.taken_from(checkpoint(state))


# Killed


def live(root, after_s, used):
    """Archive chunk after chunk and train on each; killed after so much CPU time, if that is not 0."""
    without_kafka()
    logging.disable(logging.CRITICAL)
    signal.setitimer(signal.ITIMER_PROF, after_s)  # nobody handles its signal, so it ends the process at once
    began = time.process_time()
    state = StateSettings(root=root)
    log, done = ArchivedLog(state), root / "chunks"
    known = int(done.read_text() or 0) if done.exists() else 0
    training = trainer(state)
    for chunk in range(CHUNKS):
        log.add(EVENTS)  # always the same: a chunk that is there is written again
        if chunk >= known:
            training.round()
            done.write_text(str(chunk + 1))
    used.value = time.process_time() - began


@pytest.mark.timeout(300)
def test_killed_at_any_moment_it_comes_to_the_weights_of_a_run_that_was_not(tmp_path):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["streaming.trainer"])
    used = context.Value("d", 0.0)

    def life(folder, after_s=0.0):
        folder.mkdir(exist_ok=True)
        process = context.Process(target=live, args=(folder, after_s, used))
        process.start()
        process.join()
        return process.exitcode

    assert life(tmp_path / "whole") == 0
    whole = StateSettings(root=tmp_path / "whole")
    assert standing(whole).rounds == CHUNKS
    moments, kills, longest = random.Random(11), 0, used.value / 2
    for run in range(KILLS):
        folder = tmp_path / f"run {run}"
        while (code := life(folder, moments.uniform(0.001, longest) if kills < KILLS else 0.0)) == -signal.SIGPROF:
            kills += 1
        assert code == 0
        killed = StateSettings(root=folder)
        assert_same(checkpoint(whole), checkpoint(killed))
        found = Registry(killed.registry)
        assert_same(read_learner(found.folder(found.current())), checkpoint(killed))
        if kills == KILLS:
            return
    raise AssertionError("hardly any life was cut short")


class Interrupted(BaseException):
    """As a kill, but the process stays."""


def interrupted_round(training, at_step=2):
    """A round that ends in the middle of its training."""

    def stop(step, *_):
        if step == at_step:
            raise Interrupted

    training._progress = stop
    with pytest.raises(Interrupted):
        training.round()


def test_a_round_cut_short_is_repeated_as_it_was_though_more_has_come(tmp_path):
    ends = []
    for name in ("whole", "cut"):
        state = StateSettings(root=tmp_path / name)
        log = ArchivedLog(state)
        log.add(60)
        training = trainer(state)
        training.round()
        log.add(40)
        if name == "cut":
            interrupted_round(training)
            log.add(30)
            training = trainer(state)
            training.round()
        else:
            training.round()
            log.add(30)
        training.round()
        ends.append(checkpoint(state))
    assert Standing.taken_from(dict(ends[0])).rounds == 3
    assert_same(*ends)


def test_the_order_in_which_the_archive_was_filled_does_not_matter(tmp_path):
    """One partition's files come late: a trainer that read them as they came ends as one that read all at once."""
    ends = []
    for name in ("kept", "restarted"):
        state = StateSettings(root=tmp_path / name)
        log = ArchivedLog(state)
        training = trainer(state)
        for late in (True, False, True):
            log.add(60, late=late)
            if name == "restarted":
                training = trainer(state)
            training.round()
        ends.append(checkpoint(state))
    assert_same(*ends)


# Gone back


def test_after_a_rollback_training_goes_on_from_the_version_that_serves_without_what_the_other_knew(tmp_path):
    """As if the events of the withdrawn version had never been."""
    ends = []
    for name in ("clean", "poisoned"):
        state = StateSettings(root=tmp_path / name)
        log, registry = ArchivedLog(state), Registry(state.registry)
        log.add(200)
        training = trainer(state, holdout_share=0.0)
        training.round()
        log.add(50, lost=name == "clean")
        if name == "poisoned":
            training.round()
            registry.activate("v000001")
        log.add(50)
        training.round()
        ends.append(checkpoint(state))
    for of in ends:
        of.pop("trainer.standing")
    assert_same(*ends)


def test_a_restart_after_a_rollback_ends_in_the_same_place(tmp_path):
    ends = []
    for restarts in (False, True):
        state = StateSettings(root=tmp_path / str(restarts))
        log, registry = ArchivedLog(state), Registry(state.registry)
        training = trainer(state)
        for version in ("v000001", "v000002", "v000003"):
            log.add(60)
            assert training.round() == version
        registry.activate("v000002")
        if restarts:
            training = trainer(state)
        for version in ("v000004", "v000005"):
            log.add(60)
            if restarts:
                training = trainer(state)
            assert training.round() == version == registry.current()
        ends.append(checkpoint(state))
    assert_same(*ends)


def test_what_a_withdrawn_version_knew_is_not_trained_on_again(state, log, registry):
    log.add(60)
    training = trainer(state, holdout_share=0.0)
    training.round()
    log.add(60)
    training.round()
    registry.activate("v000001")
    training.go_back("v000001")
    assert training.status().version == "v000001"
    assert training.round() is None, "nothing new"
    log.add(30)
    training.round()
    assert training.status().events == 90
    assert trainer(state, holdout_share=0.0).round() is None
    assert registry.versions()[-1].version == "v000003"


def test_weights_that_are_no_numbers_are_given_up(state, log, registry, monkeypatch):
    log.add(60)
    training = trainer(state)
    training.round()
    good = checkpoint(state)
    log.add(60)
    fit = training._learner.fit

    def spoilt(*arguments, **options):
        done = fit(*arguments, **options)
        for weight in training._learner.average.values():
            weight.fill_(float("nan"))
        return done

    monkeypatch.setattr(training._learner, "fit", spoilt)
    assert training.round() is None
    assert registry.current() == "v000001"
    assert registry.verdict("v000002").reason.startswith("nan:")
    after = checkpoint(state)
    for name in good.keys() - {"trainer.standing"}:
        assert torch.equal(good[name], after[name]), name
    log.add(60)
    assert training.round() == "v000003"


# Without what it wrote


def test_without_a_checkpoint_it_goes_on_from_the_version_that_serves(state, log, registry):
    log.add(60)
    trainer(state).round()
    before = checkpoint(state)
    for name in (CHECKPOINT, PUBLISHED, ROUND):
        (state.trainer / name).unlink()
    training = trainer(state)
    assert training.round() is None
    assert_same(before, checkpoint(state))
    log.add(40)
    assert training.round() == "v000002"


def test_a_damaged_checkpoint_is_left_aside(state, log, caplog):
    log.add(60)
    trainer(state).round()
    (state.trainer / CHECKPOINT).write_bytes(b"no tensors")
    log.add(40)
    assert trainer(state).round() == "v000002"
    assert "cannot be read and is left aside" in caplog.text


def test_a_version_of_another_archive_is_gone_on_from_and_every_event_is_new_to_it(tmp_path, caplog):
    there, here = (StateSettings(root=tmp_path / name) for name in ("there", "here"))
    ArchivedLog(there).add(200)
    trainer(there, holdout_share=0.0).round()
    there.registry.rename((here.root.mkdir(), here.registry)[1])
    log = ArchivedLog(here)
    log.add(50)
    training = trainer(here, holdout_share=0.0)
    assert "was trained on another archive" in caplog.text
    assert training.round() == "v000002"
    assert standing(here).positions == dict(enumerate(log.next))


# Beside others


def test_of_two_trainers_one_leads_and_the_other_waits_and_says_so(state, log, registry):
    stops = [threading.Event(), threading.Event()]
    trainers = [new_trainer(state, min_events=10), new_trainer(state, min_events=10)]
    threads = [threading.Thread(target=one.run, args=(stop,)) for one, stop in zip(trainers, stops, strict=True)]
    try:
        threads[0].start()
        eventually(lambda: trainers[0].status().phase == "waiting for events")
        threads[1].start()
        eventually(lambda: trainers[1].status().phase == "standing by")
        assert f"another trainer (process {os.getpid()} on" in (trainers[1].status().error or "")
        log.add(60)
        eventually(lambda: registry.current() == "v000001")
        assert trainers[1].status().version is None
        stops[0].set()
        threads[0].join(30)
        eventually(lambda: trainers[1].status().version == "v000001" and trainers[1].status().error is None)
    finally:
        for stop in stops:
            stop.set()
        for thread in threads:
            thread.join(30)


def test_a_gap_in_the_archive_is_told_and_training_goes_on(state, log):
    log.add(60)
    log.next[1] += 7
    log.add(40)
    training = trainer(state, holdout_share=0.0)
    assert training.round() == "v000001"
    assert training.status().events == 100
    assert "the archive lacks 7 records" in (training.status().gap or "")
    assert "of partition 1: a file is missing" in (training.status().gap or "")


def test_what_deleted_users_did_is_not_trained_on_after_a_restart_or_in_replay(state, log):
    log.add(150)
    trainer(state, holdout_share=0.0).round()
    gone = log.of(3)
    log.forget(3)
    log.add(1, action="click")
    training = trainer(state, holdout_share=0.0)
    training.round()
    assert training.status().events == 151 - gone
    assert log.of(3) == 0


def test_a_round_that_was_begun_for_a_user_who_was_deleted_since_is_dropped(state, log):
    log.add(60)
    training = trainer(state, holdout_share=0.0)
    training.round()
    log.only(3, 5)
    interrupted_round(training, at_step=1)
    log.forget(3)
    assert trainer(state, holdout_share=0.0).round() is None
    log.only(4, 5)
    assert trainer(state, holdout_share=0.0).round() == "v000002"


@pytest.mark.parametrize("place", ["registry", "trainer"])
def test_a_disk_that_is_full_costs_nothing_of_what_was_learnt(tmp_path, monkeypatch, place):
    ends = []
    for name in ("whole", "full"):
        state = StateSettings(root=tmp_path / name)
        log = ArchivedLog(state)
        log.add(60)
        training = trainer(state)
        training.round()
        log.add(40)
        if name == "full":
            target, name_ = (Registry, "publish") if place == "registry" else (TrainerFolder, "save")
            error = RegistryError if place == "registry" else OSError

            def full(*_, error=error, **__):
                raise error("no space left")

            with monkeypatch.context() as patch:
                patch.setattr(target, name_, full)
                with pytest.raises(error, match="no space left"):
                    training.round()
        assert training.round() == "v000002"
        ends.append(checkpoint(state))
    assert_same(*ends)


def test_a_registry_whose_pointer_is_damaged_stops_publishing_and_not_what_was_learnt(state, log, registry):
    log.add(60)
    trainer(state).round()
    (state.registry / "current.json").write_text("{")
    log.add(40)
    training = trainer(state)
    with pytest.raises(RegistryError, match="activate a version anew"):
        training.round()
    (state.registry / "current.json").write_text(json.dumps({"version": "v000001"}))
    assert training.round() == "v000002"
    assert standing(state).rounds == 2
