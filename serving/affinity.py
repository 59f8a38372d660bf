"""Which replica of the Recommender a user's events and queries go to: always the same one, by the user's partition.

It keeps the keys and values of its users, so whoever meets them again has little to encode. Nothing but speed depends
on it: where replicas come and go, or one is too busy, another answers the same.
"""

from typing import Any

from kafka.partitioner.default import murmur2
from ray.serve.handle import DeploymentHandle

ROUTER = "ray.serve.experimental.consistent_hash_router.ConsistentHashRouter"


def partition_of(user_id: str, partitions: int) -> int:
    """The partition of the event topic where a user's events lie: Kafka's own rule for keyed records."""
    return (int(murmur2(user_id.encode())) & 0x7FFFFFFF) % partitions


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
