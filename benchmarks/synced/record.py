"""The JSON of one replay, and what it says."""

from pathlib import Path
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from benchmarks.result import ROOT, BenchmarkError, Machine, rounded
from pinrec.measures import paired_bootstrap

RESULTS: Final = ROOT / "benchmarks" / "results" / "freshness"
What = Literal["histories", "weights"]


class Synced(BaseModel):
    """Recall with one interval between syncs, and how it differs from never syncing."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sync: str
    recall: float
    gain: float = Field(description="relative to never")
    low: float = Field(description="95 % interval of the gain, paired bootstrap over the moments")
    high: float


class Replayed(BaseModel):
    """What one replay of one log gave."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: str
    seed: int
    days: float
    moments: int
    users: int
    rounds: int = Field(description="of training, in the time played again")
    histories: list[Synced]
    weights: list[Synced]
    seconds: float
    machine: Machine
    commit: str

    @property
    def name(self) -> str:
        """Of the file."""
        return f"{self.data}-seed{self.seed}"

    def monotone(self, what: What) -> bool:
        """Whether no rarer sync finds more."""
        recalls = [synced.recall for synced in getattr(self, what)]
        return recalls == sorted(recalls, reverse=True)


def synced(found: dict[str, NDArray[np.bool_]]) -> list[Synced]:
    """A row for each sync, the most frequent first."""
    never = found["never"].astype(np.float64)
    rows = []
    for sync, hits in found.items():
        difference = paired_bootstrap(never, hits.astype(np.float64))
        base = max(difference.mean_a, 1e-12)
        rows.append(
            Synced(
                sync=sync,
                recall=rounded(difference.mean_b),
                gain=rounded(difference.difference / base),
                low=rounded(difference.low / base),
                high=rounded(difference.high / base),
            )
        )
    return rows


def read_replays(folder: Path = RESULTS) -> list[Replayed]:
    """All that are there, by name.

    Raises:
        BenchmarkError: there are none, or a file is none.
    """
    found = []
    for path in sorted(folder.glob("*.json")):
        try:
            found.append(Replayed.model_validate_json(path.read_text()))
        except ValueError as error:
            raise BenchmarkError(f"{path}: not a replay of this version: {error}") from None
    if not found:
        raise BenchmarkError(f"{folder}: no replays; take one with `python -m benchmarks.synced --data PATH`")
    return found
