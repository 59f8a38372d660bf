"""What Gateways say of their batches: how many queries one held, and what its stages took."""

from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

from benchmarks.result import Stage, rounded
from serving.client import PinRecClient

_SHARED: Final = {
    "read": "reading histories",
    "encode": "encoding what is new in them",
    "generate": "embeddings, search and filling of lists",
}
PROTOCOL: Final = (
    "Stages: means over the rounds' batches, from /v1/status of the Gateways before and after each. Waiting is of each "
    "query, until its batch begins; the others are a batch's time over its queries, so a query's share, while each of "
    "them waits for the whole batch, given in brackets. Writing answers and all of HTTP are in none of them."
)


class Batches:
    """Adds up what the Gateways' batches took, while it is entered.

    Args:
        url: of the API.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._took: Counter[str] = Counter()

    def __enter__(self) -> None:
        self._took.subtract(self._so_far())

    def __exit__(self, *_: object) -> None:
        self._took.update(self._so_far())

    @property
    def details(self) -> dict[str, float]:
        """Mean number of queries in a batch."""
        return {"queries_in_a_batch": rounded(self._took["queries"] / self._took["batches"])}

    @property
    def stages(self) -> list[Stage]:
        """Mean ms of a query, and of a batch as a whole."""
        took = self._took
        of_query = {"waiting for a batch": took["wait"] / took["waited"]}
        of_query |= {f"{name}, a query's share": took[stage] / took["queries"] for stage, name in _SHARED.items()}
        of_query["(the three of a whole batch)"] = sum(took[stage] for stage in _SHARED) / took["batches"]
        return [Stage(name=name, value=rounded(ms), unit="ms") for name, ms in of_query.items()]

    def _so_far(self) -> Counter[str]:
        with PinRecClient(self._url) as client:
            return _totals(client.status().gateways)


def _totals(gateways: Sequence[dict[str, Any]]) -> Counter[str]:
    """Queries, batches and ms of each stage since the Gateways' start."""
    total: Counter[str] = Counter()
    for gateway in gateways:
        sizes, stages = gateway["batch_size"], gateway["stages_ms"]
        total.update(queries=sizes["sum"], batches=sizes["count"], waited=stages["wait"]["count"])
        total.update({stage: stages[stage]["sum"] for stage in ("wait", *_SHARED)})
    return total
