"""All replicas at a glance: what /v1/status is made of."""

from collections.abc import Sequence
from typing import Any

from ray.serve.handle import DeploymentHandle

from serving.config import AppSettings

_PATIENCE_S = 2.0

Reply = dict[str, Any] | BaseException
"""What a replica says of itself, or why it says nothing."""


async def ask(handle: DeploymentHandle[Any], method: str = "status") -> list[Reply]:
    """The reply of every replica; none at all where the deployment, or one of its replicas, keeps us waiting."""
    try:
        broadcast = handle.broadcast(method)
        replies: list[Reply] = await broadcast.results_async(timeout_s=_PATIENCE_S, return_exceptions=True)
    except Exception:  # a status page must come even when a part is down
        return []
    return replies


def answered(replies: Sequence[Reply]) -> list[dict[str, Any]]:
    """What those say that answered."""
    return sorted((reply for reply in replies if isinstance(reply, dict)), key=lambda reply: reply.get("replica", 0))


def troubles(
    settings: AppSettings,
    gateways: Sequence[Reply],
    recommenders: Sequence[Reply],
    ingestors: Sequence[Reply],
    trainers: Sequence[Reply],
) -> list[str]:
    """What is wrong, one sentence each."""
    found = []
    for name, replies in (("Gateway", gateways), ("Recommender", recommenders), ("Ingestor", ingestors)):
        replicas = answered(replies)
        found += [] if replicas else [f"no {name} answers"]
        for replica in replicas:
            found += [f"{name} {replica['replica']}: {trouble}" for trouble in replica["troubles"]]
        found += [f"a {name} does not answer: {_last_line(reply)}" for reply in replies if not isinstance(reply, dict)]
    if settings.trainer.enabled:
        leads = answered(trainers)
        if leads:
            found += [f"Trainer: {trouble}" for trouble in leads[0]["troubles"]]
        else:
            why = [f": {_last_line(reply)}" for reply in trainers[:1] if not isinstance(reply, dict)]
            found.append("".join(["the Trainer does not answer", *why]))
    return found


def _last_line(error: BaseException) -> str:
    """Ray puts the replica's whole traceback before it."""
    return (str(error).strip() or type(error).__name__).splitlines()[-1]
