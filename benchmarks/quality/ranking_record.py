"""What a measure of the ranking head leaves: one JSON in benchmarks/results/quality/ranking/."""

import json
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, ConfigDict

from benchmarks.quality.record import RESULTS, read_measures, run_name
from benchmarks.result import Machine

MODEL: Final = "pinrec_ranking"
FOLDER: Final = RESULTS / "ranking"


class Compared(BaseModel):
    """A figure of two orders on the same users, and the 95 % interval of its difference over users."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    before: float
    after: float
    low: float
    high: float
    users: int


class Time(BaseModel):
    """Milliseconds of one call: median over the repeats, and (least, most) of them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    median: float
    spread: tuple[float, float]


class Cost(BaseModel):
    """What a batch of requests takes; `times` by name, `ratio` of encoding again to reusing the cache."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    batch: int
    events: float
    candidates: int
    threads: int
    times: dict[str, Time]
    ratio: float


class RankingRun(BaseModel):
    """What one JSON file holds.

    Attributes:
        test, valid: figures of retrieval, as of any model: they say whether the head costs retrieval anything.
        shown, retrieved: means over users.
        gains: the head's order against retrieval's.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    dataset: str
    seed: int
    fold: int
    test: dict[str, float]
    valid: dict[str, float]
    shown: dict[str, float]
    retrieved: dict[str, float]
    gains: dict[str, Compared]
    cost: list[Cost]
    best_epoch: int
    seconds: float
    config: dict[str, Any]
    commit: str
    data_sha256: str
    machine: Machine

    def write(self, folder: Path) -> Path:
        """Write the JSON; where it lies."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{run_name(self.dataset, 'disjoint', MODEL, self.seed, self.fold)}.json"
        path.write_text(json.dumps(self.model_dump(mode="json"), indent=1, allow_nan=False) + "\n")
        return path


def read_rankings(folder: Path) -> list[RankingRun]:
    """See `read_measures`."""
    return read_measures(folder, RankingRun)
