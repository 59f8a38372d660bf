"""RecBole's own virtual environment: its pinned packages, and the project's torch."""

from pathlib import Path
from typing import Final

from benchmarks.environment import environment_python
from serving.stack import Progress

REQUIREMENTS: Final = Path(__file__).parent / "requirements.txt"


def recbole_python(folder: Path, progress: Progress) -> Path:
    """The interpreter of the environment in `folder`; see `environment_python`."""
    return environment_python(folder, REQUIREMENTS, "RecBole's", "recbole.trainer", 600, progress)


def recbole_version() -> str:
    """The version that is required."""
    lines = REQUIREMENTS.read_text().splitlines()
    return next(line.partition("==")[2] for line in lines if line.startswith("recbole=="))
