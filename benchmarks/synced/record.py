"""The JSON of one run, of a replayed log or of the town, and what it says."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from benchmarks.result import ROOT, BenchmarkError, Machine, rounded
from pinrec.measures import paired_bootstrap

RESULTS: Final = ROOT / "benchmarks" / "results" / "freshness"
What = Literal["histories", "weights"]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    seed: int
    days: float
    seconds: float
    machine: Machine
    commit: str


class Synced(BaseModel):
    """Recall with one interval between syncs, and how it differs from never syncing."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sync: str
    recall: float
    gain: float = Field(description="relative to never")
    low: float = Field(description="95 % interval of the gain, paired bootstrap over the moments")
    high: float


class Replayed(_Record):
    """What one replay of one log gave."""

    data: str
    what: What
    moments: int
    users: int
    rounds: int = Field(description="of training, in the time played again")
    rows: list[Synced] = Field(description="the most frequent sync first, never last")

    @property
    def name(self) -> str:
        """Of the file."""
        return replayed_name(self.data, self.what, self.seed)


class Lived(_Record):
    """What one life of the town was worth."""

    life: str = Field(description="which parts are synced when, see `benchmarks.synced.command.LIVES`")
    sync: dict[str, str] = Field(description="by part; those not named are synced each minute")
    sessions: int
    reward: float = Field(description="true worth of a session's lists: clicks, saves and shares to be expected, mean")
    hours: list[float] = Field(description="the same of the sessions that began in each hour")
    of_best: float = Field(description="worth of the lists, of that of the best lists there could be")
    rounds: int = Field(description="of training")
    config: dict[str, Any]

    @property
    def name(self) -> str:
        """Of the file."""
        return lived_name(self.life, self.seed)


def replayed_name(data: str, what: str, seed: int) -> str:
    """Of the file of a replay, without its ending."""
    return f"{data}-{what}-seed{seed}"


def lived_name(life: str, seed: int) -> str:
    """Of the file of a life, without its ending."""
    return f"town-{life}-seed{seed}"


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


def monotone(values: Sequence[float]) -> bool:
    """Whether no rarer sync gives more; the most frequent is first."""
    return list(values) == sorted(values, reverse=True)


def read_records(folder: Path = RESULTS) -> tuple[list[Replayed], list[Lived]]:
    """All that are there, by name; none where there is no such folder.

    Raises:
        BenchmarkError: a file is none.
    """
    replays, lives = list[Replayed](), list[Lived]()
    for path in sorted(folder.glob("*.json")):
        text = path.read_text()
        try:
            if path.name.startswith("town-"):
                lives.append(Lived.model_validate_json(text))
            else:
                replays.append(Replayed.model_validate_json(text))
        except ValidationError as error:
            raise BenchmarkError(f"{path}: not a run of this version: {error}") from None
    return replays, lives
