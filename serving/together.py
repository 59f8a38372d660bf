"""Queries that wait go to a replica together: a call between processes costs more than most of what it carries."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final, Generic, TypeVar

Query = TypeVar("Query")
Answer = TypeVar("Answer")

CALLS: Final = 2
"""Calls under way at a time: while one is worked on, the next is on its way."""
MOST: Final = 64
"""Queries of one call."""


class Together(Generic[Query, Answer]):
    """Asks one replica. Lives on one event loop.

    A query goes at once where fewer than `CALLS` calls are under way; else it waits for one of them to end, and goes
    with all that wait by then. No fixed delay, and calls carry more by themselves under load.

    Args:
        ask: one call: queries -> an answer to each.
    """

    def __init__(self, ask: Callable[[list[Query]], Awaitable[list[Answer]]]) -> None:
        self._ask = ask
        self._waiting: deque[tuple[Query, asyncio.Future[Answer]]] = deque()
        self._calls: set[asyncio.Task[None]] = set()

    async def __call__(self, query: Query) -> Answer:
        """The answer to a query; whatever its call raises is raised to each query of it."""
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append((query, answer))
        self._send()
        return await answer

    def _send(self) -> None:
        while self._waiting and len(self._calls) < CALLS:
            taken = [self._waiting.popleft() for _ in range(min(MOST, len(self._waiting)))]
            asked = [(query, answer) for query, answer in taken if not answer.done()]  # else its caller went away
            if asked:
                call = asyncio.create_task(self._call(asked))
                self._calls.add(call)
                call.add_done_callback(self._ended)

    def _ended(self, call: "asyncio.Task[None]") -> None:
        self._calls.discard(call)
        self._send()

    async def _call(self, asked: "list[tuple[Query, asyncio.Future[Answer]]]") -> None:
        try:
            answers = await self._ask([query for query, _ in asked])
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
