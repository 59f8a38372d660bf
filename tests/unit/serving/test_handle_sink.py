"""Which calls to the Recommender become of the users with new events."""

import asyncio
from typing import Any

import pytest

from serving.ingestor import HandleSink


class Replicas:
    """In place of Serve's handle: partitions are shared out among some replicas, which answer when they are let."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.calls: list[tuple[int, list[str]]] = []
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.faults: list[Exception] = []
        self.hopeless = 1 << 30
        """Calls for so many users are never answered."""

    def _init(self, **_: Any) -> None:
        pass

    def options(self, session_id: str | None = None, **_: Any) -> Any:
        return self if session_id is None else _Session(self, int(session_id))


class _Session:
    def __init__(self, replicas: Replicas, partition: int) -> None:
        self._replicas, self._partition = replicas, partition

    async def remote(self, user_ids: list[str]) -> str:
        replica = self._partition % self._replicas.count
        self._replicas.calls.append((replica, user_ids))
        await (asyncio.Event() if len(user_ids) >= self._replicas.hopeless else self._replicas.may_answer).wait()
        if self._replicas.faults:
            raise self._replicas.faults.pop()
        return f"replica {replica}"


async def _asked(sink: HandleSink, *of: tuple[int, str]) -> None:
    async with asyncio.timeout(20):
        await asyncio.gather(*(asyncio.wrap_future(sink.submit(partition, [user])) for partition, user in of))


def test_one_replica_is_asked_for_what_waits_in_all_partitions_together() -> None:
    async def scenario() -> None:
        replicas = Replicas(1)
        sink = HandleSink(replicas, asyncio.get_running_loop())  # type: ignore[arg-type]
        await _asked(sink, (0, "a"), (1, "b"), (2, "c"))
        assert sorted(replicas.calls) == [(0, ["a"]), (0, ["b"]), (0, ["c"])], "nobody knows yet who makes them"
        replicas.calls.clear()
        await _asked(sink, (0, "d"), (1, "e"), (2, "d"))
        assert replicas.calls == [(0, ["d", "e"])]

    asyncio.run(scenario())


def test_each_of_several_replicas_is_asked_for_its_own_partitions() -> None:
    async def scenario() -> None:
        replicas = Replicas(2)
        sink = HandleSink(replicas, asyncio.get_running_loop())  # type: ignore[arg-type]
        for _ in range(2):
            replicas.calls.clear()
            await _asked(sink, (0, "a"), (1, "b"), (2, "c"))
            assert sorted(replicas.calls) == [(0, ["a"]), (0, ["c"]), (1, ["b"])]

    asyncio.run(scenario())


def test_a_replica_that_joins_gets_its_partitions() -> None:
    async def scenario() -> None:
        replicas = Replicas(1)
        sink = HandleSink(replicas, asyncio.get_running_loop())  # type: ignore[arg-type]
        for _ in range(2):
            await _asked(sink, (0, "a"), (1, "b"))
        replicas.count = 2
        sink._forget_at = 0.0  # some seconds later
        replicas.calls.clear()
        await _asked(sink, (0, "a"), (1, "b"))
        await _asked(sink, (0, "a"), (1, "b"))
        assert sorted(replicas.calls) == [(0, ["a"]), (0, ["a"]), (1, ["b"]), (1, ["b"])]

    asyncio.run(scenario())


def test_a_call_that_fails_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.ingestor._FIRST_RETRY_S", 0.0)

    async def scenario() -> None:
        replicas = Replicas(1)
        replicas.faults = [RuntimeError("the replica died")] * 2
        sink = HandleSink(replicas, asyncio.get_running_loop())  # type: ignore[arg-type]
        await _asked(sink, (0, "a"))
        assert replicas.calls == [(0, ["a"])] * 3

    asyncio.run(scenario())


def test_what_takes_too_long_is_asked_for_in_ever_smaller_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.ingestor._PATIENCE_S", 0.05)
    monkeypatch.setattr("serving.ingestor._FIRST_RETRY_S", 0.0)

    async def scenario() -> None:
        replicas = Replicas(1)
        replicas.hopeless = 3
        sink = HandleSink(replicas, asyncio.get_running_loop())  # type: ignore[arg-type]
        async with asyncio.timeout(20):
            await asyncio.wrap_future(sink.submit(0, ["a", "b", "c", "d", "e"]))
        assert replicas.calls == [
            (0, ["a", "b", "c", "d", "e"]),
            (0, ["a", "b"]),
            (0, ["c", "d", "e"]),
            (0, ["c"]),
            (0, ["d", "e"]),
        ]

    asyncio.run(scenario())


def test_more_users_than_a_call_may_hold_are_asked_for_in_several(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.ingestor._MOST_USERS", 2)

    async def scenario() -> None:
        replicas = Replicas(1)
        sink = HandleSink(replicas, asyncio.get_running_loop())  # type: ignore[arg-type]
        async with asyncio.timeout(20):
            await asyncio.wrap_future(sink.submit(0, ["a", "b", "c", "d", "e"]))
        assert replicas.calls == [(0, ["a", "b"]), (0, ["c", "d"]), (0, ["e"])]

    asyncio.run(scenario())
