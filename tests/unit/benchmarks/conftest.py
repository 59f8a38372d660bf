"""What tests of several measures share."""

import pytest

from benchmarks.quality import timed
from streaming.simulator import TownConfig


@pytest.fixture
def small_town(monkeypatch: pytest.MonkeyPatch) -> TownConfig:
    """The town that measures on a split by time ask for, so small that it is lived through at once; on one core."""
    town = TownConfig(inhabitants=60, items=120, past_events=1_500, past_days=3)
    monkeypatch.setattr(timed, "TownConfig", lambda: town)
    monkeypatch.setattr(timed, "use_all_cores", lambda: None)
    return town
