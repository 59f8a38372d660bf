"""What a replica does with versions: lists them, moves the pointer, refuses with the remedy, and divides its users."""

import asyncio
import gc
import subprocess
import sys
import time

import pytest

from pinrec.registry import Registry
from pinrec.split import version_for
from pinrec.verdicts import Refusal
from serving.config import AppSettings
from serving.engine import Engine, NotLiveError
from serving.problems import Problem
from streaming.stores.lmdb import LmdbSequenceStore
from tests.eventually import eventually
from tests.reading import recommended
from tests.small_bundle import CONFIG, small_bundle, small_history

USERS = [f"user-{i}" for i in range(30)]


@pytest.fixture
def settings(tmp_path):
    state = {"root": str(tmp_path), "map_gib": 0.1}
    settings = AppSettings(state=state, model=CONFIG, serving={"split": {"v000001": 0.4}, "poll_models_s": 60})
    store = LmdbSequenceStore(settings.state.sequences, CONFIG.history, CONFIG.stride, 0.1)
    changes = [(user, event) for i, user in enumerate(USERS) for event in small_history(3, seed=i).events()]
    store.apply(0, 0, len(changes), changes, as_of=time.time())
    store.close()
    registry = Registry(settings.state.registry)
    for seed in (1, 2, 3):
        registry.publish(small_bundle(seed=seed))
    return settings


def test_users_are_divided_and_every_answer_names_its_version(settings):
    async def asked():
        engine = Engine(settings, 0)
        answers = await asyncio.gather(*(recommended(engine, user) for user in USERS))
        return answers, await engine.status()

    answers, status = asyncio.run(asked())
    for user, answer in zip(USERS, answers, strict=True):
        assert answer.model_version == (version_for(user, settings.serving.split) or "v000003")
        assert answer.request_id.startswith(f"{answer.model_version}.")
    assert {answer.model_version for answer in answers} == {"v000001", "v000003"}
    assert status["split"]["v000001"]["share"] == 0.4
    # There is no Kafka here, so nothing is heard of items.
    assert [trouble for trouble in status["troubles"] if not trouble.startswith("item updates are not read")] == []


DELETE = """
import sys, time
from pathlib import Path
from streaming.stores.lmdb import LmdbSequenceStore
folder, limit, stride, *users = sys.argv[1:]
store = LmdbSequenceStore(Path(folder), int(limit), int(stride), 0.1)
at = store.offset(0)
store.apply(0, at, at + len(users), [(user, None) for user in users], as_of=time.time())
store.close()
"""
"""For a process of its own, as an ingestor is one: LMDB's locks belong to the process."""


def test_what_is_kept_of_deleted_users_goes_without_another_question(settings):
    async def kept():
        engine = Engine(settings, 0)
        await asyncio.gather(*(recommended(engine, user) for user in USERS))
        states = [engine._answerer.states, engine._split._others["v000001"].answerer.states]
        before = [each.recent for each in states]
        deleted = {users[0] for users in before}  # one of each version
        sizes = [str(size) for size in (CONFIG.history, CONFIG.stride)]
        command = [sys.executable, "-c", DELETE, str(settings.state.sequences), *sizes, *deleted]
        await asyncio.to_thread(subprocess.run, command, check=True, timeout=60)
        left = [set(users) - deleted for users in before]
        await asyncio.to_thread(eventually, lambda: [set(each.recent) for each in states] == left)
        return before

    assert all(len(users) > 1 for users in asyncio.run(kept()))


def test_no_collection_walks_what_a_replica_held_when_it_began_to_serve(settings):
    """A walk through the model and all that is imported stops every answer of a replica for tens of milliseconds."""
    thresholds = gc.get_threshold()
    gc.unfreeze()
    try:
        engine = Engine(settings, 0)
        bundle = engine._live.bundle
        assert gc.get_freeze_count() > 10_000
        assert not any(each is bundle.model for each in gc.get_objects())
        held = gc.get_freeze_count()
        Registry(settings.state.registry).publish(small_bundle(seed=4))
        engine._live.refresh()
        assert engine._live.version == "v000004"
        assert gc.get_freeze_count() <= held, "nor is it stopped by one when versions change"
    finally:
        gc.unfreeze()
        gc.set_threshold(*thresholds)


def test_the_pointer_is_moved_back_and_only_force_brings_a_withdrawn_version_again(settings):
    async def moved():
        engine = Engine(settings, 0)
        said = [
            await engine.rollback("wrong prices"),
            await engine.activate("v000003"),
            await engine.activate("v000009"),
            await engine.models(),
            await engine.activate("v000003", force=True),
        ]
        await engine.activate("v000001")
        return [*said, await engine.rollback(""), await engine.models()]

    back, refused, unknown, models, forced, nothing_older, after = asyncio.run(moved())
    assert back is forced is None
    assert (refused.status, refused.field, "--force" in refused.detail) == (409, "version", True)
    assert unknown.status == 404
    assert [(one.version, one.state, one.current) for one in models.versions] == [
        ("v000003", "withdrawn", False), ("v000002", "passed", True), ("v000001", "passed", False),
    ]  # fmt: skip
    assert models.versions[0].refusals[0].message == "wrong prices"
    assert (nothing_older.status, after.current) == (409, "v000001")


def test_a_version_of_the_split_that_is_taken_back_answers_nobody_until_it_is_forced(settings):
    serving = settings.serving.model_copy(update={"split": {"v000002": 0.4}})
    settings = settings.model_copy(update={"serving": serving})
    registry = Registry(settings.state.registry)

    async def asked():
        engine, found = Engine(settings, 0), []
        for move in (
            lambda: None,
            lambda: registry.rollback(Refusal(check="operator", message="wrong prices"), to="v000001"),
            lambda: registry.activate("v000002", force=True),
        ):
            move()
            engine._live.refresh()
            engine._split._others["v000002"].live.refresh()
            answers = await asyncio.gather(*(recommended(engine, user) for user in USERS))
            found.append(({answer.model_version for answer in answers}, await engine.status()))
        return found

    (before, _), (after, status), (forced, again) = asyncio.run(asked())
    assert before == {"v000002", "v000003"}
    assert after == {"v000001"}, "its users go where the pointer is"
    assert status["split"]["v000002"]["live_since"] is None
    said = "serving.split: v000002 does not serve: it was withdrawn (operator: wrong prices)"
    assert said in status["troubles"]
    assert forced == {"v000002"}
    assert said not in again["troubles"]


def test_a_pinned_version_wins_over_the_trainer_and_over_operators(settings):
    settings = settings.model_copy(update={"pinned_version": "v000002"})
    registry = Registry(settings.state.registry)

    async def asked():
        engine = Engine(settings, 0)
        registry.publish(registry.load("v000003"))
        engine._live.refresh()
        current = next(user for user in USERS if version_for(user, settings.serving.split) is None)
        answer = await recommended(engine, current)
        return answer, await engine.activate("v000004"), await engine.rollback("")

    answer, *problems = asyncio.run(asked())
    assert answer.model_version == "v000002"
    for problem in problems:
        assert isinstance(problem, Problem)
        assert (problem.status, problem.field) == (422, "version")
        assert "pins a version" in problem.detail
    assert registry.current() == "v000004"


def test_a_replica_that_starts_while_the_current_version_is_broken_takes_none_that_was_refused(settings):
    registry = Registry(settings.state.registry)
    registry.refuse([Refusal(check="recall", message="worse")], registry.publish(small_bundle(seed=4), activate=False))
    broken = registry.publish(small_bundle(seed=5))
    (registry.folder(broken) / "table.npy").write_bytes(b"")
    assert Engine(settings, 0)._live.version == "v000003"


def test_lists_are_owed_from_the_first_version_on_also_by_a_replica_that_has_it_not_live_yet(tmp_path):
    settings = AppSettings(state={"root": str(tmp_path), "map_gib": 0.1}, model=CONFIG, serving={"poll_models_s": 60})
    LmdbSequenceStore(settings.state.sequences, CONFIG.history, CONFIG.stride, 0.1).close()

    async def asked():
        engine = Engine(settings, 0)
        assert await engine.generate(["user"]) == 0, "there is no model: nobody is owed a list"
        Registry(settings.state.registry).publish(small_bundle())
        with pytest.raises(NotLiveError, match="v000001 is not live here yet"):
            await engine.generate(["user"])

    asyncio.run(asked())
