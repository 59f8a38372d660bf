"""The JSON of what it costs to keep users' keys and values in fewer bits."""

from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict

from benchmarks.quality.record import RESULTS, SideMeasure, read_measures

FOLDER: Final = RESULTS / "kept"
EXACT: Final = "float32"
TYPES: Final = (EXACT, "bfloat16", "int8")


class KeptIn(BaseModel):
    """Lists made with keys and values in one type."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    recall: float
    """Recall@10, mean over users."""
    same: float
    """Share of the places whose item is among those of the same user's list with float32."""
    interval: tuple[float, float] | None
    """95 % of recall minus that with float32, by a bootstrap over users; null for float32."""


class KeptRun(SideMeasure):
    """What one JSON file holds."""

    types: dict[str, KeptIn]


def read_kept(folder: Path) -> list[KeptRun]:
    """See `read_measures`."""
    return read_measures(folder, KeptRun)
