"""Who is generated for next: batches formed by what waits, queries before events, latest wins."""

import asyncio
import logging
import time
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Generic, TypeVar

from serving.problems import Problem

log = logging.getLogger(__name__)

Query = TypeVar("Query")
Answer = TypeVar("Answer")

MAX_PUBLISHING: Final = 4
"""Batches on their way to Kafka. With Kafka down lists for events wait here, and queries go on."""


@dataclass
class _Waiting(Generic[Query, Answer]):
    query: Query
    answer: "asyncio.Future[Answer]"
    since: float = field(default_factory=time.monotonic)


class Scheduler(Generic[Query, Answer]):
    """Forms batches for one worker. Lives on one event loop.

    While a batch is worked on, what arrives waits and makes the next one: no fixed delay, and
    batches grow by themselves under load. A user whose next event arrives while one waits is
    generated for once. A batch that fails is worked on in halves: one user whose history cannot be read or generated
    for takes no other's list. It is given up where others succeed, and counted (`given_up`).

    Args:
        work: one batch: (queries, user ids with new events) -> (answers to the queries, lists for
            the users).
        publish: delivers lists for users; the next batches do not wait for it.
        max_batch: most queries and users in a batch.
        max_queue: most queries that may wait.
        deadline_s: a query that has waited longer is refused rather than answered late.
        waited: told how long each query has waited, s, when its batch begins.

    Attributes:
        given_up: lists that could not be made.
        refused: queries refused as too many waited, or as they had waited too long.
        superseded: events that waited when another one of their user came; one list is made for all of them.
    """

    def __init__(
        self,
        work: Callable[[list[Query], list[str]], Awaitable[tuple[list[Answer], list[Answer]]]],
        publish: Callable[[list[Answer]], Awaitable[None]],
        max_batch: int,
        max_queue: int,
        deadline_s: float,
        waited: Callable[[float], None] = lambda _: None,
    ) -> None:
        self._work, self._publish, self._waited = work, publish, waited
        self._max_batch, self._max_queue, self._deadline_s = max_batch, max_queue, deadline_s
        self._queries: deque[_Waiting[Query, Answer]] = deque()
        self._events: OrderedDict[str, asyncio.Future[None]] = OrderedDict()
        self._something = asyncio.Event()
        self._publishing: set[asyncio.Task[None]] = set()
        self.given_up = self.refused = self.superseded = 0

    async def query(self, query: Query) -> Answer:
        """The answer to a query.

        Raises:
            Problem: 503 when the queue is full or the deadline passed.
        """
        if len(self._queries) >= self._max_queue:
            self.refused += 1
            raise Problem(503, f"{self._max_queue} queries wait already; try again shortly", retry_after_s=1)
        waiting = _Waiting[Query, Answer](query, asyncio.get_running_loop().create_future())
        self._queries.append(waiting)
        self._something.set()
        return await waiting.answer

    def event(self, user_id: str) -> "asyncio.Future[None]":
        """Note a new event of a user; the future is done when a list made after it is published."""
        future = self._events.get(user_id)
        if future is None:
            future = self._events[user_id] = asyncio.get_running_loop().create_future()
            self._something.set()
        else:
            self.superseded += 1
        return future

    @property
    def waiting(self) -> tuple[int, int]:
        """(queries, users with new events) that wait."""
        return len(self._queries), len(self._events)

    async def run(self) -> None:
        """Work for ever; a failure is the caller's whose query or user it is."""
        while True:
            await self._something.wait()
            queries = self._take_queries()
            users = self._take_users(self._max_batch - len(queries))
            if not self._queries and (not self._events or len(self._publishing) >= MAX_PUBLISHING):
                self._something.clear()
            if queries or users:
                await self._batch(queries, users)

    def _take_users(self, most: int) -> dict[str, "asyncio.Future[None]"]:
        if len(self._publishing) >= MAX_PUBLISHING:
            return {}
        return dict(self._events.popitem(last=False) for _ in range(min(most, len(self._events))))

    def _take_queries(self) -> list[_Waiting[Query, Answer]]:
        now = time.monotonic()
        oldest = now - self._deadline_s
        taken: list[_Waiting[Query, Answer]] = []
        while self._queries and len(taken) < self._max_batch:
            waiting = self._queries.popleft()
            if waiting.answer.done():  # its caller went away
                continue
            if waiting.since < oldest:
                late = Problem(503, f"no answer within {self._deadline_s:g} s; try again shortly", retry_after_s=1)
                waiting.answer.set_exception(late)
                self.refused += 1
            else:
                taken.append(waiting)
                self._waited(now - waiting.since)
        return taken

    async def _batch(self, queries: list[_Waiting[Query, Answer]], users: dict[str, "asyncio.Future[None]"]) -> None:
        failures = await self._attempt(queries, users)
        everything = len(failures) == len(queries) + len(users)
        for of, error in failures:
            if everything or isinstance(of, _Waiting):
                # Whoever asked for lists asks again; where nothing can be made, that is all there is to do.
                _fail([of.answer if isinstance(of, _Waiting) else users[of]], error)
            else:
                # Asked for again, it would fail again, and keep from their lists all who are asked for with it.
                log.error("no list for user %r: %s: %s", of[:200], type(error).__name__, error)
                self.given_up += 1
                if not users[of].done():
                    users[of].set_result(None)

    async def _attempt(
        self, queries: list[_Waiting[Query, Answer]], users: dict[str, "asyncio.Future[None]"]
    ) -> list[tuple[_Waiting[Query, Answer] | str, Exception]]:
        """Work on a batch; where that fails, on its halves, until what is at fault stands alone. Returns those."""
        try:
            answers, lists = await self._work([w.query for w in queries], list(users))
        except Exception as error:  # the loop must go on
            members: list[_Waiting[Query, Answer] | str] = [*queries, *users]
            if len(members) == 1:
                return [(members[0], error)]
            failures = []
            for half in (members[: len(members) // 2], members[len(members) // 2 :]):
                failures += await self._attempt(
                    [m for m in half if isinstance(m, _Waiting)], {m: users[m] for m in half if isinstance(m, str)}
                )
            return failures
        for waiting, answer in zip(queries, answers, strict=True):
            if not waiting.answer.done():
                waiting.answer.set_result(answer)
        if users:
            task = asyncio.create_task(self._deliver(lists, list(users.values())))
            self._publishing.add(task)
            task.add_done_callback(self._delivered)
        return []

    async def _deliver(self, lists: list[Answer], futures: list["asyncio.Future[None]"]) -> None:
        try:
            await self._publish(lists)
        except Exception as error:  # the callers get it, and repeat
            _fail(futures, error)
            return
        for future in futures:
            if not future.done():
                future.set_result(None)

    def _delivered(self, task: "asyncio.Task[None]") -> None:
        self._publishing.discard(task)
        if self._events:
            self._something.set()


def _fail(futures: "Sequence[asyncio.Future[Any]]", error: Exception) -> None:
    for future in futures:
        if not future.done():
            future.set_exception(error)
