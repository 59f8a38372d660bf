"""How long the stages of a batch took, and how many it was: histograms of fixed bounds, so that replicas' add up."""

import time
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
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
        """As `/v1/status` has it: `up_to` has how many values were at most each bound; the last, +Inf, holds all."""
        up_to = dict(zip(_labels(self._bounds), accumulate(self._counts), strict=True))
        count = up_to["+Inf"]
        return {"count": count, "mean": self._sum / count if count else None, "sum": self._sum, "up_to": up_to}


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
        """The stages and batch_size, each as `Histogram.report`."""
        return {
            "stages_ms": {stage: histogram.report for stage, histogram in self._stages.items()},
            "batch_size": self.batch_size.report,
        }


def together(reports: Sequence[dict[str, Any]], bounds: Sequence[float]) -> tuple[list[tuple[str, float]], float]:
    """Replicas' histograms as one, as Prometheus has them: (bound, values up to it) and the sum of all values."""
    up_to = [(bound, float(sum(report["up_to"][bound] for report in reports))) for bound in _labels(bounds)]
    return up_to, sum(report["sum"] for report in reports)


def _labels(bounds: Sequence[float]) -> list[str]:
    return [*(f"{bound:g}" for bound in bounds), "+Inf"]
