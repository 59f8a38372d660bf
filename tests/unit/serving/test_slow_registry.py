"""A registry that takes its time, as a network disk or an object store may: nobody but who asks for it waits."""

import asyncio
import threading
import time

import pytest
from fsspec.implementations.local import LocalFileSystem

import pinrec.bundle_store
from pinrec.registry import Registry
from serving.config import AppSettings
from serving.engine import Engine
from streaming.config import StateSettings
from streaming.stores.lmdb import LmdbSequenceStore
from tests.archived_log import ArchivedLog
from tests.eventually import eventually
from tests.reading import recommended
from tests.small_bundle import CONFIG, small_bundle, small_history
from tests.small_trainer import new_trainer, without_kafka

CALLS = 20
"""More than there are threads for whatever has none of its own."""


class SlowFileSystem(LocalFileSystem):
    """Files as ever, but for `slow` kinds of calls while `quick` is not set."""

    quick = threading.Event()
    waiting = threading.Event()
    slow: frozenset[str] = frozenset()

    def _take_time(self, name):
        if name in self.slow and not self.quick.is_set():
            self.waiting.set()
            self.quick.wait()

    def cat_file(self, *arguments, **options):
        self._take_time("read")
        return super().cat_file(*arguments, **options)

    def open(self, path, mode="rb", **options):
        self._take_time("write" if "x" in mode else "read")
        return super().open(path, mode, **options)

    def info(self, *arguments, **options):
        self._take_time("read")
        return super().info(*arguments, **options)


@pytest.fixture
def slow(monkeypatch):
    """The file system of every registry that is made from now on; quick until it is told otherwise, and at the end."""
    monkeypatch.setattr(pinrec.bundle_store, "LocalFileSystem", SlowFileSystem)
    SlowFileSystem.waiting.clear()
    SlowFileSystem.quick.set()
    yield SlowFileSystem
    SlowFileSystem.quick.set()


def test_answers_status_and_histories_come_while_a_replica_waits_for_the_registry(tmp_path, slow, monkeypatch):
    monkeypatch.setattr(slow, "slow", frozenset({"read"}))
    state = {"root": str(tmp_path), "map_gib": 0.1}
    settings = AppSettings(state=state, model=CONFIG, serving={"poll_models_s": 0.01})
    store = LmdbSequenceStore(settings.state.sequences, CONFIG.history, CONFIG.stride, 0.1)
    changes = [("ada", event) for event in small_history(3).events()]
    store.apply(0, 0, len(changes), changes, as_of=time.time())
    store.close()
    registry = Registry(settings.state.registry)
    registry.publish(small_bundle(seed=1))

    async def asked():
        engine = Engine(settings, 0)
        await recommended(engine, "ada")
        slow.quick.clear()
        try:
            waiting = [asyncio.create_task(engine.models()) for _ in range(CALLS)]
            while not slow.waiting.is_set():
                await asyncio.sleep(0)
            async with asyncio.timeout(30):
                answers = [await recommended(engine, "ada") for _ in range(3)]
                status, history = await engine.status(), await engine.user("ada")
            done = [task for task in waiting if task.done()]
        finally:
            slow.quick.set()
        models = await asyncio.gather(*waiting)
        registry.publish(small_bundle(seed=2))
        await asyncio.to_thread(eventually, lambda: engine._live.version == "v000002")
        return answers, status, history, done, models

    answers, status, history, done, models = asyncio.run(asked())
    assert [answer.model_version for answer in answers] == ["v000001"] * 3
    assert (status["model_version"], status["behind"]) == ("v000001", None), (
        "ready, and not behind anything it knows of"
    )
    assert history.total == 3
    assert done == []
    assert {found.current for found in models} == {"v000001"}


@pytest.mark.parametrize("what", ["read", "write"])
def test_a_trainer_waits_for_the_registry_says_how_it_stands_and_goes_on(tmp_path, slow, monkeypatch, what):
    without_kafka(monkeypatch.setattr)
    monkeypatch.setattr(slow, "slow", frozenset({what}))
    state = StateSettings(root=tmp_path)
    log, stop = ArchivedLog(state), threading.Event()
    training = new_trainer(state, interval_s=0.05)
    thread = threading.Thread(target=training.run, args=(stop,))
    log.add(60)
    thread.start()
    try:
        eventually(lambda: training.status().version == "v000001" and training.status().phase == "idle")
        slow.quick.clear()
        log.only(1, 40)  # in one file, so that one round takes all of it
        assert slow.waiting.wait(30)
        status = training.status()
        assert (status.version, status.error) == ("v000001", None)
        assert thread.is_alive()
        slow.quick.set()
        eventually(lambda: training.status().version == "v000002")
    finally:
        slow.quick.set()
        stop.set()
        thread.join(30)
    assert not thread.is_alive()
    assert Registry(state.registry).current() == "v000002"
    assert training.status().rounds == 2
