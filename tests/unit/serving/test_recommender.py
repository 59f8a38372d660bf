"""What a caller of the Recommender is told when it cannot make lists."""

import asyncio
import subprocess
import sys

import pytest
from ray import cloudpickle

from serving.engine import NotLiveError
from serving.recommender import Recommender


class _NotYet:
    """In place of an engine, which would need a registry and Kafka to fail like this."""

    async def generate(self, _user_ids: list[str]) -> int:
        raise NotLiveError("v000001 is not live here yet")


def test_errors_reach_the_ingestor_as_words_without_torch_being_imported_there() -> None:
    recommender = object.__new__(Recommender.func_or_class)
    recommender._engine = _NotYet()
    with pytest.raises(RuntimeError) as raised:
        asyncio.run(recommender.generate(["user"]))
    code = (
        "import pickle, sys, serving.ingestor; error = pickle.load(sys.stdin.buffer); "
        "assert 'torch' not in sys.modules; print(error)"
    )
    sent = cloudpickle.dumps(raised.value)
    said = subprocess.run([sys.executable, "-c", code], input=sent, capture_output=True, check=True, timeout=60)
    assert said.stdout.decode().strip() == "NotLiveError: v000001 is not live here yet"
