"""What the workers of the usual stack are told. It needs nothing that one of the two environments lacks."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final, Self

VARIABLE: Final = "PINREC_BENCHMARK_USUAL"
"""Of the environment: path of the job as JSON."""


@dataclass(frozen=True)
class Job:
    """Where Redis is, and the same sizes as PinRec's.

    Attributes:
        ready: folder in which each worker leaves a file once it answers.
    """

    redis_port: int
    item_ids: list[str]
    width: int
    layers: int
    heads: int
    history: int
    ready: str

    def write(self, path: Path) -> dict[str, str]:
        """Write it; returns what a worker's environment must say."""
        path.write_text(json.dumps(asdict(self)))
        return {VARIABLE: str(path)}

    @classmethod
    def read(cls) -> Self:
        """What the environment names."""
        return cls(**json.loads(Path(os.environ[VARIABLE]).read_text()))
