"""The limit on bad events, the watchdog and the queue of owed generations, each with a clock of its own."""

from concurrent.futures import Future

import pytest

from streaming.dead_letter_limit import DeadLetterLimit, IngestHaltedError
from streaming.generation_queue import GenerationQueue
from streaming.watchdog import StallWatch


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Sink:
    def __init__(self) -> None:
        self.asked: list[tuple[list[str], Future[None]]] = []

    def submit(self, partition: int, user_ids: list[str]) -> "Future[None]":
        future: Future[None] = Future()
        self.asked.append((user_ids, future))
        return future


def test_ingestion_halts_at_more_than_the_share_and_not_before() -> None:
    limit = DeadLetterLimit(0.5, 10, Clock())
    limit.add(10, 9)
    limit.add(12, 2)
    with pytest.raises(IngestHaltedError, match="12 of 23") as caught:
        limit.add(1, 1, "action: 'clikc' is not declared")
    assert "clikc" in str(caught.value)


def test_a_few_bad_events_never_halt() -> None:
    limit = DeadLetterLimit(0.1, 10, Clock())
    for _ in range(9):
        limit.add(1, 1)


def test_bad_events_are_forgotten_after_a_minute() -> None:
    clock = Clock()
    limit = DeadLetterLimit(0.1, 10, clock)
    for _ in range(10):
        limit.add(9, 9)
        clock.now += 61
    with pytest.raises(IngestHaltedError):
        limit.add(10, 10)


def test_a_share_of_one_never_halts() -> None:
    limit = DeadLetterLimit(1.0, 1, Clock())
    for _ in range(100):
        limit.add(10, 10)


def test_only_a_position_that_stands_below_its_end_is_stalled() -> None:
    clock = Clock()
    watch = StallWatch(15.0, clock)
    assert not watch.stalled(0, 5, 5)
    clock.now = 100.0
    assert not watch.stalled(0, 5, 5)
    assert not watch.stalled(0, 5, 9)
    clock.now = 114.0
    assert not watch.stalled(0, 5, 12)
    clock.now = 115.5
    assert watch.stalled(0, 5, 12)
    assert not watch.stalled(0, 6, 12)
    watch.forget()
    assert not watch.stalled(0, 6, 12)


def test_generation_is_bounded_and_what_waits_is_gathered_once_per_user() -> None:
    sink = Sink()
    queue = GenerationQueue(sink, 0, first=100, bound=2)
    for i in range(6):
        queue.add(101 + i, ["ann", f"user-{i}"])
        queue.advance()
    assert [users for users, _ in sink.asked] == [["ann", "user-0"], ["ann", "user-1"]]
    assert (queue.done, queue.owed) == (100, 2 + 2 + 5)
    sink.asked[1][1].set_result(None)
    queue.advance()
    assert queue.done == 100
    sink.asked[0][1].set_result(None)
    queue.advance()
    assert queue.done == 102
    assert sink.asked[2][0] == ["ann", "user-2", "user-3", "user-4", "user-5"]
    sink.asked[2][1].set_result(None)
    queue.advance()
    assert (queue.done, queue.owed) == (106, 0)


def test_ranges_that_owe_nothing_move_on_but_never_past_what_is_owed() -> None:
    sink = Sink()
    queue = GenerationQueue(sink, 0, first=0)
    queue.add(10, [])
    queue.advance()
    assert queue.done == 10
    queue.add(20, ["ann"])
    queue.advance()
    queue.add(30, [])
    queue.advance()
    assert queue.done == 10
    sink.asked[0][1].set_result(None)
    queue.advance()
    assert queue.done == 30


def test_a_failed_generation_is_asked_for_again_and_holds_its_place() -> None:
    clock, sink = Clock(), Sink()
    queue = GenerationQueue(sink, 0, first=0, clock=clock)
    queue.add(10, ["ann"])
    queue.advance()
    queue.add(20, ["bob"])
    queue.advance()
    sink.asked[0][1].set_exception(RuntimeError("replica gone"))
    sink.asked[1][1].set_result(None)
    queue.advance()
    assert (queue.done, len(sink.asked)) == (0, 2)
    clock.now += 2
    queue.advance()
    queue.advance()
    assert sink.asked[2][0] == ["ann"]
    sink.asked[2][1].set_result(None)
    queue.advance()
    assert queue.done == 20
