"""A small town, its past read once."""

import pytest

from streaming.schema import UserEvent
from streaming.simulator import Town, TownConfig

OPENS_AT = 1_770_000_000.0


@pytest.fixture(scope="session")
def town_config() -> TownConfig:
    return TownConfig(seed=7, inhabitants=300, items=600, past_days=7, past_events=16_000)


@pytest.fixture(scope="session")
def past(town_config: TownConfig) -> list[UserEvent]:
    return list(Town(town_config, OPENS_AT).past())


@pytest.fixture
def town(town_config: TownConfig) -> Town:
    """A town without memories, so that tests do not depend on each other."""
    return Town(town_config, OPENS_AT)
