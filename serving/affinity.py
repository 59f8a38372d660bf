"""Which replica of the Recommender makes the lists for a user's events: always the same one, by the user's partition.

It keeps the keys and values of its users, so whoever meets them again has little to encode. Nothing but speed depends
on it: where replicas come and go, or one is too busy, another makes the same. Queries meet the same Gateway by
`serving.haproxy`.
"""

from typing import Any

from ray.serve.handle import DeploymentHandle

ROUTER = "ray.serve.experimental.consistent_hash_router.ConsistentHashRouter"


class Near:
    """Handles for calls to the replica of a partition; making one is not free, so each is made once."""

    def __init__(self, handle: DeploymentHandle[Any]) -> None:
        self._handle = handle
        self._handles: dict[int, DeploymentHandle[Any]] = {}

    def __call__(self, partition: int) -> DeploymentHandle[Any]:
        """The handle of a partition."""
        if partition not in self._handles:
            self._handles[partition] = self._handle.options(session_id=str(partition))
        return self._handles[partition]
