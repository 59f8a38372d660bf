"""All replicas at a glance: what /v1/status is made of."""

from typing import Any

from ray.serve.handle import DeploymentHandle

from serving.config import AppSettings

_PATIENCE_S = 2.0


async def ask(handle: DeploymentHandle[Any], method: str = "status") -> list[dict[str, Any]]:
    """What every replica says of itself; nothing where the deployment does not answer now."""
    try:
        replies: list[dict[str, Any]] = await handle.broadcast(method).results_async(timeout_s=_PATIENCE_S)
    except Exception:  # a status page must come even when a part is down
        return []
    return sorted(replies, key=lambda reply: reply.get("replica", 0))


def troubles(
    settings: AppSettings,
    gateways: list[dict[str, Any]],
    recommenders: list[dict[str, Any]],
    ingestors: list[dict[str, Any]],
    trainer: dict[str, Any] | None,
) -> list[str]:
    """What is wrong, one sentence each."""
    found = []
    for name, replicas in (("Gateway", gateways), ("Recommender", recommenders), ("Ingestor", ingestors)):
        found += [] if replicas else [f"no {name} answers"]
        for replica in replicas:
            found += [f"{name} {replica['replica']}: {trouble}" for trouble in replica["troubles"]]
    if settings.trainer.enabled:
        found += ["the Trainer does not answer"] if trainer is None else [f"Trainer: {t}" for t in trainer["troubles"]]
    return found
