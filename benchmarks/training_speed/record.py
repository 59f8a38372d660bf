"""Where the measure's JSON lies, one for each data set: a `benchmarks.result.Result`."""

import json
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from benchmarks.quality.record import RESULTS
from benchmarks.result import BenchmarkError, Result

FOLDER: Final = RESULTS / "training_speed"
ID: Final = "training_speed"
SIDES: Final = ("value", "baseline", "every_position")
"""Keys of `samples` and `spread`, and the beginnings of the names of `details`."""


def read_speeds(folder: Path) -> dict[str, Result]:
    """All of a folder, by data set; none where there is no such folder.

    Raises:
        BenchmarkError: a file is none.
    """
    found = {}
    for path in sorted(folder.glob("*.json")):
        try:
            found[path.stem] = Result.model_validate(json.loads(path.read_text()))
        except (ValidationError, ValueError) as error:
            raise BenchmarkError(f"{path}: not a measure of this version: {error}") from None
    return found
