"""Two processes whose trainers make each fit together, against one with a batch twice as large."""

import os
import threading

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from pinrec.bundle import read_learner
from pinrec.registry import Registry
from streaming.config import StateSettings
from tests.archived_log import ArchivedLog
from tests.eventually import eventually
from tests.small_trainer import MODEL, TRAINING, new_trainer, without_kafka

RANKS, VERSIONS, EVENTS = 2, ("v000001", "v000002"), 60
CERTAIN = MODEL.model_copy(update={"dropout": 0.0})  # dropout is drawn by each process for its own windows


def _meet(rank, folder):
    without_kafka()
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=RANKS)


def _part(rank, folder):
    """Leave together, and at once: gloo's threads may abort a process whose peer has gone, at its very end too."""
    dist.barrier()
    (folder / f"done-{rank}").touch()
    eventually(lambda: all((folder / f"done-{each}").exists() for each in range(RANKS)))
    os._exit(0)


def _run_until(training, version):
    """Run a trainer until it has published a version."""
    stop = threading.Event()
    running = threading.Thread(target=training.run, args=(stop,))
    running.start()
    try:
        eventually(lambda: training.status().version == version)
    finally:
        stop.set()
        running.join()
    assert training.status().error is None


def _help_and_lead(rank, folder):
    """Two lives of each trainer: before the second one there are more events."""
    _meet(rank, folder)
    state = StateSettings(root=folder / "together")
    log = ArchivedLog(state) if rank == 0 else None
    for version in VERSIONS:
        if log:
            log.add(EVENTS)
        dist.barrier()
        training = new_trainer(state, model=CERTAIN, group=dist.group.WORLD, interval_s=0.05)
        if log:
            _run_until(training, version)
        else:
            training.run(threading.Event())
            torch.save(training._learner.state(), folder / f"helper-{version}.pt")
    _part(rank, folder)


def _see_other_events(rank, folder):
    _meet(rank, folder)
    training = new_trainer(StateSettings(root=folder / f"of-{rank}"), group=dist.group.WORLD)
    if rank == 0:
        ArchivedLog(StateSettings(root=folder / "of-0")).add(EVENTS)
        training.resume()
        with pytest.raises(ValueError, match=r"same state\.root"):
            training.round()
        assert training.status().version is None
        training._crew.dismiss()
    else:
        training.run(threading.Event())
    _part(rank, folder)


def test_the_trainers_of_two_processes_learn_what_one_learns_with_a_batch_twice_as_large(tmp_path, monkeypatch):
    mp.spawn(_help_and_lead, (tmp_path,), nprocs=RANKS)
    without_kafka(monkeypatch.setattr)
    state = StateSettings(root=tmp_path / "alone")
    log = ArchivedLog(state)
    for version in VERSIONS:
        log.add(EVENTS)
        larger = TRAINING.model_copy(update={"batch_users": RANKS * TRAINING.batch_users})
        alone = new_trainer(state, model=CERTAIN, training=larger, interval_s=0.05)
        _run_until(alone, version)
        together, expected = (
            read_learner(Registry(tmp_path / name / "models").folder(version)) for name in ("together", "alone")
        )
        helped = torch.load(tmp_path / f"helper-{version}.pt", weights_only=True)
        assert together["progress"].tolist() == expected["progress"].tolist()
        for name, value in expected.items():
            torch.testing.assert_close(together[name], value, rtol=1e-2, atol=2e-4, msg=name)
            if name in helped:
                assert torch.equal(helped[name], together[name]), name


def test_a_process_that_sees_other_events_is_told_of_and_nothing_is_trained(tmp_path):
    mp.spawn(_see_other_events, (tmp_path,), nprocs=RANKS)
