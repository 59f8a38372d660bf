import asyncio

import pytest

from serving.together import CALLS, MOST, Together


class Replica:
    """Answers when it is told to."""

    def __init__(self):
        self.calls = []

    async def __call__(self, queries):
        done = asyncio.get_running_loop().create_future()
        self.calls.append((queries, done))
        await done
        return [f"to {query}" for query in queries]


async def settle():
    for _ in range(5):
        await asyncio.sleep(0)


def test_what_waits_goes_together_once_a_call_has_ended():
    async def scenario():
        replica = Replica()
        together = Together(replica)
        answers = [asyncio.ensure_future(together(n)) for n in range(CALLS + 3)]
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
        answers = [asyncio.ensure_future(together(n)) for n in range(CALLS + MOST + 2)]
        await settle()
        answers[CALLS].cancel()
        await settle()
        replica.calls[0][1].set_result(None)
        await settle()
        assert replica.calls[CALLS][0] == list(range(CALLS + 1, CALLS + MOST))
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
        first, second = (asyncio.ensure_future(together(n)) for n in range(2))
        await settle()
        replica.calls[0][1].set_exception(ConnectionError("gone"))
        with pytest.raises(ConnectionError, match="gone"):
            await first
        replica.calls[1][1].set_result(None)
        assert await second == "to 1"
        third = asyncio.ensure_future(together(2))
        await settle()
        replica.calls[2][1].set_result(None)
        assert await third == "to 2"

    asyncio.run(scenario())
