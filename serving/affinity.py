"""Which replica of the Recommender makes the lists for a user's events: always the same one, by the user's partition.

It keeps the keys and values of its users, so whoever meets them again has little to encode. Nothing but speed depends
on it: where replicas come and go, or one is too busy, another makes the same. Queries meet the same Gateway by
`serving.haproxy`.
"""

import asyncio
from typing import Any

from ray.serve._private.utils import asyncio_grpc_exception_handler
from ray.serve.handle import DeploymentHandle

ROUTER = "ray.serve.experimental.consistent_hash_router.ConsistentHashRouter"


class Near:
    """Handles for calls of a method of a partition's replica; making one is not free, so each is made once.

    Calls go to the replica over gRPC, from the event loop that this is made on, which halves the time of a list beside
    Serve's usual way: as a task of Ray, from a thread of its own. What is sent has to fit into 4 MB.
    """

    def __init__(self, handle: DeploymentHandle[Any], method: str) -> None:
        # As Ray does on its own loops: gRPC takes it for an error that another loop of the process was faster.
        asyncio.get_running_loop().set_exception_handler(asyncio_grpc_exception_handler)
        handle._init(_run_router_in_separate_loop=False)  # type: ignore[no-untyped-call]
        self._handle = handle.options(method_name=method, _by_reference=False)
        self._handles: dict[int, DeploymentHandle[Any]] = {}

    def __call__(self, partition: int) -> DeploymentHandle[Any]:
        """The handle of a partition."""
        if partition not in self._handles:
            self._handles[partition] = self._handle.options(session_id=str(partition))
        return self._handles[partition]
