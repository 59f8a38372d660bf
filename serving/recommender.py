"""The Recommender deployment: an engine that makes the lists for new events."""

from typing import Any

from ray import serve
from ray.serve.config import RequestRouterConfig

from serving.affinity import ROUTER
from serving.config import AppSettings
from serving.logs import log_with_serve


@serve.deployment(request_router_config=RequestRouterConfig(request_router_class=ROUTER))  # type: ignore[arg-type]  # a name will do
class Recommender:
    """Hands each call to the engine; queries are answered by the engines of the Gateways."""

    def __init__(self, settings: AppSettings) -> None:
        # Here, not above: who only builds the application need not wait for torch.
        from serving.engine import Engine

        log_with_serve()
        context = serve.get_replica_context()
        self._engine, self._name = Engine(settings, context.rank.rank), context.replica_id.unique_id

    async def generate(self, user_ids: list[str]) -> str:
        """Make and publish new lists for users with new events; returns when Kafka has them.

        Returns:
            which replica has made them.

        Raises:
            RuntimeError: what went wrong, in words: the error's own class may be one that the caller would have to
                import torch for.
        """
        try:
            await self._engine.generate(user_ids)
        except Exception as error:
            raise RuntimeError(f"{type(error).__name__}: {error}") from None
        return self._name

    async def status(self) -> dict[str, Any]:
        """How this replica is."""
        return await self._engine.status()

    def check_health(self) -> None:
        """Serve restarts a replica whose scheduler has died.

        Raises:
            RuntimeError: it has.
        """
        self._engine.check_health()
