"""The Recommender deployment: one engine in a replica."""

import asyncio
from typing import Any

from ray import serve
from ray.serve.config import RequestRouterConfig

from serving.affinity import ROUTER
from serving.api import Models, RecommendationRequest, SimilarItems, UserHistory
from serving.config import AppSettings
from serving.problems import Problem
from streaming.schema import Recommendation


@serve.deployment(request_router_config=RequestRouterConfig(request_router_class=ROUTER))  # type: ignore[arg-type]  # a name will do
class Recommender:
    """Hands each call to the engine. A refusal is returned, not raised, so that it crosses the handle as it is."""

    def __init__(self, settings: AppSettings) -> None:
        # Here, not above: who only builds the application need not wait for torch.
        from serving.engine import Engine

        self._engine = Engine(settings, serve.get_replica_context().rank.rank)

    async def recommend(self, request: RecommendationRequest) -> Recommendation | Problem:
        """A list."""
        return await self._engine.recommend(request)

    async def recommend_json(self, requests: list[RecommendationRequest]) -> list[bytes | Problem]:
        """A list for each, as the body of an HTTP answer."""
        answers = await asyncio.gather(*map(self._engine.recommend, requests))
        return [answer if isinstance(answer, Problem) else answer.model_dump_json().encode() for answer in answers]

    async def generate(self, user_ids: list[str]) -> int:
        """Make and publish new lists for users with new events; returns how many when Kafka has them."""
        return await self._engine.generate(user_ids)

    async def similar(self, item_id: str, k: int, categories: list[str]) -> SimilarItems | Problem:
        """The items most like an item."""
        return await self._engine.similar(item_id, k, categories)

    async def user(self, user_id: str) -> UserHistory | Problem:
        """The history of a user."""
        return await self._engine.user(user_id)

    async def models(self) -> Models | Problem:
        """The versions in the registry, newest first."""
        return await self._engine.models()

    async def activate(self, version: str, force: bool) -> Problem | None:
        """Point the registry at a version; every replica loads and checks it, then flips."""
        return await self._engine.activate(version, force)

    async def rollback(self, reason: str) -> Problem | None:
        """Go back to the newest older version that passed the gate."""
        return await self._engine.rollback(reason)

    async def status(self) -> dict[str, Any]:
        """How this replica is."""
        return await self._engine.status()

    def check_health(self) -> None:
        """Serve restarts a replica whose scheduler has died.

        Raises:
            RuntimeError: it has.
        """
        self._engine.check_health()
