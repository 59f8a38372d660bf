import asyncio

import pytest

from serving.problems import Problem
from serving.scheduler import MAX_PUBLISHING, Scheduler


class Bench:
    """A scheduler, a worker that goes on when it is let, and everything that was worked on and published."""

    def __init__(self, max_batch=4, max_queue=8, deadline_s=60.0):
        self.batches = []
        self.published = []
        self.may_work = asyncio.Event()
        self.may_work.set()
        self.may_publish = asyncio.Event()
        self.may_publish.set()
        self.work_faults = []
        self.poison = set()
        self.publish_faults = []
        self.waited = []
        self.scheduler = Scheduler(self._work, self._publish, max_batch, max_queue, deadline_s, self.waited.append)

    async def _work(self, queries, users):
        self.batches.append((list(queries), list(users)))
        await self.may_work.wait()
        if self.work_faults:
            raise self.work_faults.pop()
        if self.poison & {*queries, *users}:
            raise ValueError("this history cannot be read")
        return [f"answer to {query}" for query in queries], [f"list for {user}" for user in users]

    async def _publish(self, lists):
        await self.may_publish.wait()
        if self.publish_faults:
            raise self.publish_faults.pop()
        self.published += lists

    def __call__(self, scenario):
        """Run the scenario beside the scheduler."""

        async def both():
            running = asyncio.create_task(self.scheduler.run())
            try:
                async with asyncio.timeout(20):
                    await scenario(self)
                assert not running.done(), "the loop goes on"
            finally:
                running.cancel()

        asyncio.run(both())

    def ask(self, *queries):
        return [asyncio.create_task(self.scheduler.query(query)) for query in queries]

    async def until(self, condition):
        while not condition():
            await asyncio.sleep(0)


def test_a_query_gets_its_own_answer():
    async def scenario(bench):
        assert await asyncio.gather(*bench.ask("a", "b", "c")) == ["answer to a", "answer to b", "answer to c"]
        assert bench.batches == [(["a", "b", "c"], [])]

    Bench()(scenario)


def test_what_comes_while_a_batch_is_worked_on_makes_the_next_one():
    async def scenario(bench):
        bench.may_work.clear()
        first = bench.ask("first")
        await bench.until(lambda: bench.batches)
        later = bench.ask("a", "b", "c", "d", "e")
        await bench.until(lambda: bench.scheduler.waiting[0] == 5)
        bench.may_work.set()
        await asyncio.gather(*first, *later)
        assert [queries for queries, _ in bench.batches] == [["first"], ["a", "b", "c", "d"], ["e"]]

    Bench()(scenario)


def test_queries_come_before_events():
    async def scenario(bench):
        bench.may_work.clear()
        first = bench.ask("first")
        await bench.until(lambda: bench.batches)
        events = [bench.scheduler.event(user) for user in ("u", "v", "w")]
        queries = bench.ask("a", "b", "c")
        await bench.until(lambda: bench.scheduler.waiting == (3, 3))
        bench.may_work.set()
        await asyncio.gather(*first, *queries, *events)
        assert bench.batches[1:] == [(["a", "b", "c"], ["u"]), ([], ["v", "w"])]

    Bench()(scenario)


def test_a_user_who_waits_is_generated_for_once():
    async def scenario(bench):
        bench.may_work.clear()
        first = bench.scheduler.event("u")
        await bench.until(lambda: bench.batches)
        # The batch under way may have read the history before these came, so they need one more, and only one.
        futures = [bench.scheduler.event("u") for _ in range(5)]
        bench.may_work.set()
        await asyncio.gather(first, *futures)
        assert bench.batches == [([], ["u"]), ([], ["u"])]
        assert bench.published == ["list for u"] * 2
        assert bench.scheduler.superseded == 4

    Bench()(scenario)


def test_a_full_queue_refuses_with_a_time_to_come_back():
    async def scenario(bench):
        bench.may_work.clear()
        first = bench.ask("first")
        await bench.until(lambda: bench.batches)
        waiting = bench.ask("a", "b")
        await bench.until(lambda: bench.scheduler.waiting[0] == 2)
        with pytest.raises(Problem) as refused:
            await bench.scheduler.query("one too many")
        assert (refused.value.status, refused.value.retry_after_s) == (503, 1)
        bench.may_work.set()
        assert len(await asyncio.gather(*first, *waiting)) == 3
        assert bench.scheduler.refused == 1

    Bench(max_queue=2)(scenario)


def test_a_query_that_waited_too_long_is_refused_and_not_worked_on():
    async def scenario(bench):
        bench.may_work.clear()
        first = bench.ask("first")
        await bench.until(lambda: bench.batches)
        late = bench.ask("late")
        await bench.until(lambda: bench.scheduler.waiting[0] == 1)
        await asyncio.sleep(0.02)  # longer than the deadline
        bench.may_work.set()
        with pytest.raises(Problem) as refused:
            await late[0]
        assert (refused.value.status, refused.value.retry_after_s) == (503, 1)
        assert await first[0] == "answer to first"
        assert len(bench.batches) == 1
        assert bench.scheduler.refused == 1
        assert bench.waited == pytest.approx([0.0], abs=5.0), "of those that were worked on"

    Bench(deadline_s=0.01)(scenario)


def test_a_failing_batch_fails_its_own_callers_only():
    async def scenario(bench):
        bench.may_work.clear()
        bench.work_faults.append(ValueError("broken"))
        failing = bench.ask("a")
        await bench.until(lambda: bench.batches)
        later = [*bench.ask("b"), bench.scheduler.event("v")]
        bench.may_work.set()
        with pytest.raises(ValueError, match="broken"):
            await failing[0]
        await asyncio.gather(*later)
        assert later[0].result() == "answer to b"
        bench.work_faults.append(ValueError("broken"))
        with pytest.raises(ValueError, match="broken"):
            await bench.scheduler.event("v")
        await bench.scheduler.event("v")
        assert bench.published == ["list for v"] * 2

    Bench()(scenario)


def test_while_kafka_is_slow_events_wait_and_queries_go_on():
    async def scenario(bench):
        bench.may_publish.clear()
        futures = []
        for number in range(MAX_PUBLISHING):
            futures.append(bench.scheduler.event(f"u{number}"))
            await bench.until(lambda: bench.scheduler.waiting[1] == 0)
        futures += [bench.scheduler.event(f"more {number}") for number in range(3)]
        for number in range(20):
            assert await bench.scheduler.query(number) == f"answer to {number}"
        assert bench.scheduler.waiting == (0, 3)
        assert not any(future.done() for future in futures)
        bench.may_publish.set()
        await asyncio.gather(*futures)
        assert len(bench.published) == MAX_PUBLISHING + 3

    Bench()(scenario)


def test_who_cannot_be_generated_for_takes_nobody_elses_list():
    async def scenario(bench):
        bench.poison = {"bad query", "bad user"}
        queries = bench.ask("a", "bad query")
        events = [bench.scheduler.event(user) for user in ("u", "bad user")]
        answers = await asyncio.gather(*queries, *events, return_exceptions=True)
        assert answers[0] == "answer to a"
        assert isinstance(answers[1], ValueError)
        assert bench.published == ["list for u"]
        # Its caller is told that it is done: asked for again and again, it would hold up everybody's.
        assert answers[2:] == [None, None]
        assert bench.scheduler.given_up == 1

    Bench()(scenario)


def test_where_nothing_can_be_made_callers_are_told_to_ask_again():
    async def scenario(bench):
        bench.poison = {"a", "u", "v"}
        answers = await asyncio.gather(
            *bench.ask("a"), bench.scheduler.event("u"), bench.scheduler.event("v"), return_exceptions=True
        )
        assert [type(answer) for answer in answers] == [ValueError] * 3
        assert bench.scheduler.given_up == 0
        bench.poison = set()
        await bench.scheduler.event("u")
        assert bench.published == ["list for u"]

    Bench()(scenario)


def test_lists_that_kafka_refuses_fail_their_callers_so_that_they_repeat():
    async def scenario(bench):
        bench.publish_faults.append(ConnectionError("no broker"))
        with pytest.raises(ConnectionError):
            await bench.scheduler.event("u")
        await bench.scheduler.event("u")
        assert bench.published == ["list for u"]

    Bench()(scenario)


def test_a_caller_who_goes_away_takes_neither_the_batch_nor_another_callers_future_along():
    async def scenario(bench):
        bench.may_work.clear()
        first = bench.ask("first")
        await bench.until(lambda: bench.batches)
        gone, stays = bench.ask("gone", "stays")
        event = bench.scheduler.event("u")
        waits = asyncio.create_task(asyncio.wait_for(asyncio.shield(event), 60))
        await bench.until(lambda: bench.scheduler.waiting == (2, 1))
        gone.cancel()
        waits.cancel()
        await asyncio.gather(gone, waits, return_exceptions=True)
        bench.may_work.set()
        assert await stays == "answer to stays"
        await event
        assert await first[0] == "answer to first"
        assert bench.batches[1:] == [(["stays"], ["u"])], "nobody works for a caller who has gone"

    Bench()(scenario)
