"""The JSON of what became of cold items."""

from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict

from benchmarks.quality.record import RESULTS, SideMeasure, read_measures

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


class ColdRun(SideMeasure):
    """What one JSON file holds."""

    groups: dict[str, Group]


def read_colds(folder: Path) -> list[ColdRun]:
    """See `read_measures`."""
    return read_measures(folder, ColdRun)
