"""How long the stages of a batch took, and how many it was: histograms of fixed bounds, so that replicas' add up."""

import time
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

STAGES: Final[dict[str, str]] = {
    "wait": "from a query's arrival to the start of its batch; of each query",
    "read": "histories of a batch",
    "encode": "histories of a batch, as far as they are not kept encoded",
    "generate": "embeddings of a batch, their search, and the filling of its lists",
    "publish": "a batch's lists for new events, until Kafka has them",
}
STAGE_BOUNDS_MS: Final = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1_000.0, 5_000.0)
BATCH_BOUNDS: Final = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)


class Histogram:
    """Counts of values up to each bound, and beyond the last, with their sum. Added to by one thread at a time."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts, self._sum = [0] * (len(bounds) + 1), 0.0

    def add(self, value: float) -> None:
        """Count a value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    @property
    def report(self) -> dict[str, Any]:
        """Its counts (one more than there are bounds) and sum, as `/v1/status` has them."""
        return {"counts": list(self._counts), "sum": self._sum}


class Timings:
    """The stages and sizes of a replica's batches since its start."""

    def __init__(self) -> None:
        self._stages = {stage: Histogram(STAGE_BOUNDS_MS) for stage in STAGES}
        self.batch_size = Histogram(BATCH_BOUNDS)

    def add(self, stage: str, seconds: float) -> None:
        """Count a stage's duration."""
        self._stages[stage].add(seconds * 1e3)

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Count how long the block takes, if it does not fail."""
        since = time.perf_counter()
        yield
        self.add(stage, time.perf_counter() - since)

    @property
    def report(self) -> dict[str, Any]:
        """The stages (ms) and batch_size, each as `Histogram.report`."""
        return {
            "stages": {stage: histogram.report for stage, histogram in self._stages.items()},
            "batch_size": self.batch_size.report,
        }


def together(reports: Sequence[dict[str, Any]], bounds: Sequence[float]) -> tuple[list[tuple[str, float]], float]:
    """Replicas' histograms as one, as Prometheus has them: (bound, values up to it) and the sum of all values."""
    so_far, upto = 0.0, []
    for i, bound in enumerate([*(f"{bound:g}" for bound in bounds), "+Inf"]):
        so_far += sum(report["counts"][i] for report in reports)
        upto.append((bound, so_far))
    return upto, sum(report["sum"] for report in reports)
