"""Copies of an object store's bundles: what is taken away is gone at once, and only what was meant."""

import os
import shutil
import time
import uuid

import pytest
import torch

import pinrec.bundle_copies
import pinrec.bundle_store
from pinrec.bundle import LEARNER, Bundle, BundleError, read_learner
from pinrec.bundle_copies import BundleCopies
from pinrec.registry import Registry
from tests.small_bundle import small_bundle, small_items


@pytest.fixture(scope="module")
def bundle():
    return small_bundle(small_items(40))


def fetch(folder):
    (folder / "table.npy").write_bytes(b"whole")


def age(folder, by_s=7_200.0):
    then = time.time() - by_s
    os.utime(folder, (then, then))


def test_a_second_reader_of_a_damaged_copy_leaves_what_the_first_has_fetched_anew(bundle, tmp_path, monkeypatch):
    url = f"memory://{uuid.uuid4().hex}/models"
    first, second = Registry(url, cache=tmp_path), Registry(url, cache=tmp_path)
    version = first.publish(bundle)
    copy = first.folder(version)
    (copy / "table.npy").write_bytes(b"damaged")
    load, loads = Bundle.load, []

    def overtaken(folder, *options):
        loads.append(folder)
        try:
            return load(folder, *options)
        except BundleError:
            if len(loads) == 1:
                first.load(version)
                (copy / "marked").touch()
            raise

    monkeypatch.setattr(pinrec.bundle_store.Bundle, "load", overtaken)
    assert second.load(version).version == version
    assert (copy / "marked").exists(), "it was fetched once"
    (left,) = [path.name for path in copy.parent.iterdir() if path.name != "lock"]
    assert left == version


def test_a_damaged_copy_of_the_training_state_is_fetched_again(bundle, tmp_path):
    registry = Registry(f"memory://{uuid.uuid4().hex}/models", cache=tmp_path)
    version = registry.publish(bundle, {"moment": torch.arange(3.0)})
    (registry.folder(version) / LEARNER).write_bytes(b"damaged")
    assert registry.opened(version, read_learner)["moment"].tolist() == [0.0, 1.0, 2.0]


@pytest.mark.parametrize("way", ["dropped", "replaced", "one too many", "written over"])
def test_who_is_killed_while_a_copy_is_taken_away_leaves_nothing_that_looks_whole(tmp_path, monkeypatch, way):
    monkeypatch.setattr(pinrec.bundle_copies, "_IN_USE_S", 60.0, raising=False)
    copies = BundleCopies(tmp_path, kept=1)
    age(copies.fetched("v000001", b"{}", fetch))

    def killed(path, ignore_errors=False, rmtree=shutil.rmtree):
        if ".fetching-" in path.name:
            rmtree(path, ignore_errors=ignore_errors)
            return
        (path / "table.npy").unlink()
        raise KeyboardInterrupt

    taken_away = {
        "dropped": lambda: copies.drop("v000001"),
        "replaced": lambda: copies.fetched("v000001", b"{} ", fetch),
        "one too many": lambda: copies.fetched("v000002", b"{}", fetch),
        "written over": lambda: copies.written("v000001", lambda folder: None).__enter__(),
    }
    with monkeypatch.context() as dies:
        dies.setattr(shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            taken_away[way]()
    for copy in tmp_path.glob("v*"):
        assert (copy / "table.npy").exists()
    assert (copies.fetched("v000001", b"{}", fetch) / "table.npy").exists()
    assert not list(tmp_path.glob(".v*")), "what was left is cleared away"


def test_a_copy_that_was_just_used_is_not_taken_away(tmp_path):
    copies = BundleCopies(tmp_path, kept=1)
    first = copies.fetched("v000001", b"{}", fetch)
    copies.fetched("v000002", b"{}", fetch)
    assert first.exists(), "it may be in the middle of being loaded"
    age(first)
    copies.fetched("v000002", b"{}", fetch)
    assert not first.exists()
