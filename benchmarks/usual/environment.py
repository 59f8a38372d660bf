"""The virtual environment of the usual stack: Redis and its client, and the project's FastAPI, torch and FAISS."""

from pathlib import Path
from typing import Final

from benchmarks.environment import environment_python
from serving.stack import Progress

REQUIREMENTS: Final = Path(__file__).parent / "requirements.txt"


def usual_python(folder: Path, progress: Progress) -> Path:
    """The interpreter of the environment in `folder`, beside which `redis-server` lies; see `environment_python`."""
    return environment_python(folder, REQUIREMENTS, "The usual stack's", "redis.asyncio, hiredis", 50, progress)
