"""What waits for a replica goes to it together: a call between processes costs more than most of what it carries."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

Query = TypeVar("Query")
Answer = TypeVar("Answer")

CALLS: Final = 2
"""Calls under way at a time: while one is worked on, the next is on its way."""
MOST: Final = 64
"""Queries of one call."""


@dataclass
class _Lane(Generic[Query, Answer]):
    """The queries of a lane."""

    waiting: "deque[tuple[Query, asyncio.Future[Answer]]]" = field(default_factory=deque)
    calls: "set[asyncio.Task[None]]" = field(default_factory=set)


class Together(Generic[Query, Answer]):
    """Asks the replica of each partition (`serving.affinity`). Lives on one event loop.

    A query goes at once where fewer than `CALLS` calls of its partition are under way; else it waits for one of them to
    end, and goes with all that wait by then. No fixed delay, and calls grow under load instead of multiplying.

    Args:
        ask: one call: (partition, queries) -> an answer to each.
    """

    def __init__(self, ask: Callable[[int, list[Query]], Awaitable[list[Answer]]]) -> None:
        self._ask = ask
        self._lanes: dict[int, _Lane[Query, Answer]] = {}

    async def __call__(self, partition: int, query: Query) -> Answer:
        """The answer to a query; whatever its call raises is raised to each query of it."""
        loop = asyncio.get_running_loop()
        lane = self._lanes.setdefault(partition, _Lane())
        answer: asyncio.Future[Answer] = loop.create_future()
        lane.waiting.append((query, answer))
        if len(lane.calls) < CALLS and len(lane.waiting) == 1:
            loop.call_soon(self._send, partition, lane)  # after what else the loop has been given by now
        return await answer

    def _send(self, partition: int, lane: _Lane[Query, Answer]) -> None:
        while lane.waiting and len(lane.calls) < CALLS:
            taken = [lane.waiting.popleft() for _ in range(min(MOST, len(lane.waiting)))]
            asked = [(query, answer) for query, answer in taken if not answer.done()]  # else its caller went away
            if asked:
                call = asyncio.create_task(self._call(partition, asked))
                lane.calls.add(call)
                call.add_done_callback(lane.calls.discard)
                call.add_done_callback(lambda _ended: self._send(partition, lane))

    async def _call(self, partition: int, asked: "list[tuple[Query, asyncio.Future[Answer]]]") -> None:
        try:
            answers = await self._ask(partition, [query for query, _ in asked])
            assert len(answers) == len(asked)
        except BaseException as error:
            for _, answer in asked:
                if not answer.done():
                    answer.set_exception(error)
            if not isinstance(error, Exception):
                raise
            return
        for (_, answer), given in zip(asked, answers, strict=True):
            if not answer.done():
                answer.set_result(given)
