"""Size and habits of the town."""

from pydantic import Field

from pinrec.config import Frozen
from streaming.simulator.words import TOPICS


class TownConfig(Frozen):
    """One seed and these figures decide everything that happens, but for the lists the town is given."""

    seed: int = Field(0, ge=0)
    inhabitants: int = Field(2_000, ge=1, le=1_000_000)
    items: int = Field(3_000, ge=50, le=200_000, description="items that can be seen at any moment")
    topics: int = Field(24, ge=6, le=len(TOPICS))
    content_width: int = Field(32, ge=4, le=2_048, description="length of ItemUpdate.embedding")
    past_days: int = Field(14, ge=1, le=365)
    past_events: int = Field(80_000, ge=1, description="about so many events in the past")
    new_items_per_minute: float = Field(2.0, ge=0, le=6_000, description="each new item withdraws the oldest")
    list_size: int = Field(8, ge=1, le=100, description="items of a list the town makes itself")
    patience: float = Field(6.0, gt=1, description="mean number of items an inhabitant looks at in a list")
    session_views: float = Field(4.0, ge=1, description="mean number of lists looked at in one session")
    step_s: float = Field(5.0, ge=0.05, description="mean pause between two lists of a live session, s")
    jump_days: float = Field(12.0, gt=0, description="mean time until one favourite topic is replaced by another")
    drift_days: float = Field(20.0, gt=0, description="period of the slow change of how much a favourite counts")
