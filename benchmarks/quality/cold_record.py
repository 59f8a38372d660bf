"""The JSON of what became of cold items."""

from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, ValidationError

from benchmarks.quality.record import RESULTS
from benchmarks.result import BenchmarkError, Machine

FOLDER: Final = RESULTS / "cold"
FEW: Final = 5
GROUPS: Final = ("0 events", f"1 to {FEW} events", "more events")


class Group(BaseModel):
    """Items that were met equally often in training."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    items: int
    answers: float
    """Share of all places of PinRec's lists."""
    popular_answers: float
    """Share of all places of the most popular unseen items, in the same lists' stead."""
    targets: int
    found: int
    """Targets in PinRec's lists of 10."""
    popular_found: int
    reward: float | None
    """Town: the true chance of a click on a place of PinRec's lists, mean; null without a place, or without a town."""

    @property
    def recall(self) -> float | None:
        """Share of the targets that is found."""
        return self.found / self.targets if self.targets else None


class ColdRun(BaseModel):
    """What one JSON file holds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dataset: str
    seed: int
    users: int
    groups: dict[str, Group]
    epoch: int
    config: dict[str, Any]
    commit: str
    seconds: float
    machine: Machine


def read_colds(folder: Path) -> list[ColdRun]:
    """All of a folder, by name; none where there is no such folder.

    Raises:
        BenchmarkError: a file is none.
    """
    found = []
    for path in sorted(folder.glob("*.json")):
        try:
            found.append(ColdRun.model_validate_json(path.read_text()))
        except ValidationError as error:
            raise BenchmarkError(f"{path}: not a measure of this version: {error}") from None
    return found
