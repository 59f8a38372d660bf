"""A folder of state, and what is in it, for the tests of trainers."""

import pytest

from pinrec.registry import Registry
from streaming.config import StateSettings
from tests.archived_log import ArchivedLog


@pytest.fixture
def state(tmp_path):
    return StateSettings(root=tmp_path / "state")


@pytest.fixture
def log(state):
    return ArchivedLog(state)


@pytest.fixture
def registry(state):
    return Registry(state.registry)
