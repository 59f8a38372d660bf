import asyncio

import pytest

from serving.together import CALLS, MOST, Together


class Replica:
    """Answers when it is told to."""

    def __init__(self):
        self.calls, self.partitions = [], []

    async def __call__(self, partition, queries):
        done = asyncio.get_running_loop().create_future()
        self.calls.append((queries, done))
        self.partitions.append(partition)
        await done
        return [f"to {query}" for query in queries]


async def settle():
    for _ in range(5):
        await asyncio.sleep(0)


def test_what_waits_goes_together_once_a_call_has_ended():
    async def scenario():
        replica = Replica()
        together = Together(replica)
        answers = []
        for n in range(CALLS + 3):
            answers.append(asyncio.ensure_future(together(0, n)))
            await settle()
        assert [queries for queries, _ in replica.calls] == [[n] for n in range(CALLS)]
        replica.calls[1][1].set_result(None)
        await settle()
        assert answers[1].result() == "to 1"
        assert replica.calls[CALLS][0] == [CALLS, CALLS + 1, CALLS + 2]
        for _, done in replica.calls:
            if not done.done():
                done.set_result(None)
        assert await asyncio.gather(*answers) == [f"to {n}" for n in range(CALLS + 3)]

    asyncio.run(scenario())


def test_who_gave_up_is_not_asked_for_and_a_call_has_a_limit():
    async def scenario():
        replica = Replica()
        together = Together(replica)
        answers = [asyncio.ensure_future(together(0, n)) for n in range(CALLS * MOST)]
        await settle()
        assert [queries for queries, _ in replica.calls] == [[*range(MOST)], [*range(MOST, 2 * MOST)]]
        answers += [asyncio.ensure_future(together(0, n)) for n in ("left", "stayed")]
        await settle()
        answers[-2].cancel()
        await settle()
        replica.calls[0][1].set_result(None)
        await settle()
        assert replica.calls[CALLS][0] == ["stayed"]
        while not all(answer.done() for answer in answers):
            for _, done in replica.calls:
                if not done.done():
                    done.set_result(None)
            await settle()

    asyncio.run(scenario())


def test_a_failed_call_fails_its_own_queries_and_the_next_goes_on():
    async def scenario():
        replica = Replica()
        together = Together(replica)
        first = asyncio.ensure_future(together(0, 0))
        await settle()
        second = asyncio.ensure_future(together(0, 1))
        await settle()
        replica.calls[0][1].set_exception(ConnectionError("gone"))
        with pytest.raises(ConnectionError, match="gone"):
            await first
        replica.calls[1][1].set_result(None)
        assert await second == "to 1"
        third = asyncio.ensure_future(together(0, 2))
        await settle()
        replica.calls[2][1].set_result(None)
        assert await third == "to 2"

    asyncio.run(scenario())


def test_what_comes_at_once_goes_together_and_each_partition_to_its_own_replica():
    async def scenario():
        replica = Replica()
        together = Together(replica)
        answers = [asyncio.ensure_future(together(n % 2, n)) for n in range(4)]
        await settle()
        assert replica.partitions == [0, 1]
        assert [queries for queries, _ in replica.calls] == [[0, 2], [1, 3]]
        for _, done in replica.calls:
            done.set_result(None)
        await asyncio.gather(*answers)

    asyncio.run(scenario())
