import asyncio
import importlib
import json
import sys
import types

import pytest

from benchmarks.result import BenchmarkError
from benchmarks.usual import environment, stack
from benchmarks.usual.job import Job
from benchmarks.usual.stack import UsualStack
from pinrec.config import ModelConfig

ITEMS = [f"item-{i}" for i in range(40)]
HISTORIES = {"ann": ITEMS[:30], "bob": ["gone", ITEMS[7]], "eve": ["gone"]}


class Redis:
    """A stand-in for the client, which only the usual stack's environment has."""

    def __init__(self, port, decode_responses):
        assert decode_responses

    async def lrange(self, key, first, last):
        assert last == -1
        return HISTORIES.get(key, [])[first:]


@pytest.fixture
def server(monkeypatch):
    client = types.ModuleType("redis.asyncio")
    client.Redis = Redis
    monkeypatch.setitem(sys.modules, "redis", types.ModuleType("redis"))
    monkeypatch.setitem(sys.modules, "redis.asyncio", client)
    yield importlib.import_module("benchmarks.usual.server")
    del sys.modules["benchmarks.usual.server"]


def test_a_list_is_as_long_as_asked_for_and_holds_nothing_the_user_has_met(server):
    recommender = server.Recommender(Job(1, ITEMS, 8, 1, 1, 16, ""))
    found = asyncio.run(recommender.recommend("ann", 20))
    assert len({item.item_id for item in found}) == 20
    assert not {item.item_id for item in found} & set(ITEMS[14:30]), "the newest 16 are read"
    assert [item.score for item in found] == sorted((item.score for item in found), reverse=True)
    assert ITEMS[7] not in {item.item_id for item in asyncio.run(recommender.recommend("bob", 39))}


def test_an_unknown_user_is_told(server):
    recommender = server.Recommender(Job(1, ITEMS, 8, 1, 1, 16, ""))
    for user_id in ("eve", "nobody"):
        with pytest.raises(server.HTTPException, match="no event"):
            asyncio.run(recommender.recommend(user_id, 20))


def test_a_job_reaches_its_worker(tmp_path, monkeypatch):
    job = Job(1, ITEMS, 8, 1, 1, 16, str(tmp_path))
    for name, value in job.write(tmp_path / "job.json").items():
        monkeypatch.setenv(name, value)
    assert Job.read() == job


def test_a_part_that_does_not_start_is_told_with_its_last_line(tmp_path, monkeypatch):
    server = tmp_path / "redis-server"
    server.write_text("#!/bin/sh\necho cannot allocate memory >&2\nexit 1\n")
    server.chmod(0o755)
    monkeypatch.setattr(stack, "usual_python", lambda *_: tmp_path / "python")
    with pytest.raises(BenchmarkError, match="redis of the usual stack does not start: cannot allocate memory"):
        UsualStack(tmp_path / "run", tmp_path, 2, ModelConfig(), ITEMS, lambda *_: None)
    assert json.loads((tmp_path / "run" / "job.json").read_text())["history"] == ModelConfig().history


def test_requirements_are_pinned_and_the_project_does_without_them():
    packages = [line for line in environment.REQUIREMENTS.read_text().splitlines() if line and line[0] != "#"]
    assert all(line.count("==") == 1 for line in packages)
    project = (environment.REQUIREMENTS.parents[2] / "pyproject.toml").read_text()
    assert not any(line.partition("==")[0] in project for line in packages)
