"""What one run leaves: a JSON of figures, of how they came about, and of what each test user got."""

import base64
import json
import math
import zlib
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from benchmarks.result import ROOT, BenchmarkError, Machine
from pinrec.measures import PerUser
from pinrec.protocols import Cases

RESULTS: Final = ROOT / "benchmarks" / "results" / "quality"
TRIALS: Final = ROOT / ".pinrec" / "quality-trials"
"""Where runs go that are no results: of other epochs than the config's."""
PROTOCOLS: Final = ("loo", "disjoint")
_PERMILLE: Final = 1_000
M = TypeVar("M", bound=BaseModel)


class Epoch(BaseModel):
    """One point of a learning curve; `seconds` since the start, `valid` where this epoch was evaluated."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    epoch: int
    loss: float | None
    seconds: float
    valid: dict[str, float] | None = None


class Run(BaseModel):
    """What one JSON file holds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dataset: str
    protocol: Literal["loo", "disjoint"]
    model: str
    seed: int
    fold: int | None = None
    test: dict[str, float]
    valid: dict[str, float]
    config: dict[str, Any]
    commit: str
    data_sha256: str
    seconds: float
    curve: list[Epoch]
    machine: Machine
    users: dict[str, str] | None = None

    @property
    def name(self) -> str:
        """Name of the file, without its ending."""
        return run_name(self.dataset, self.protocol, self.model, self.seed, self.fold)

    def write(self, folder: Path) -> Path:
        """Write the JSON, all of it or nothing; where it lies."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.name}.json"
        content = {k: v for k, v in self.model_dump(mode="json").items() if v is not None}
        aside = path.with_suffix(".tmp")
        aside.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")
        aside.replace(path)
        return path

    def per_user(self) -> tuple[NDArray[np.int64], dict[str, NDArray[np.float64]]]:
        """The test users, int64[B], and each figure of theirs, float64[B], NaN where a user has none."""
        counts = {name: unpack(text) for name, text in (self.users or {}).items()}
        user = np.cumsum(counts.pop("user", np.zeros(0, np.int64)))
        figures = {}
        for name, hits in counts.items():
            if not name.startswith("targets"):
                _, _, action = name.partition(":")
                of = counts[f"targets:{action}" if action else "targets"] if name != "diversity" else _PERMILLE
                with np.errstate(invalid="ignore"):
                    figures[name] = np.where(np.equal(of, 0), np.nan, hits / of)
        return user, figures


def run_name(dataset: str, protocol: str, model: str, seed: int, fold: int | None) -> str:
    """What tells a run from every other."""
    return f"{dataset}-{protocol}-{model}-seed{seed}" + ("" if fold is None else f"-fold{fold}")


def read_run(path: Path) -> Run:
    """A run that must be there, as another one needs its model.

    Raises:
        BenchmarkError: there is none, or the file is no run.
    """
    if not path.exists():
        raise BenchmarkError(f"{path.stem} is needed first, and is not in {path.parent}; `make quality` takes it")
    try:
        return Run.model_validate(json.loads(path.read_text()))
    except (ValidationError, ValueError) as error:
        raise BenchmarkError(f"{path}: not a run of this version: {error}") from None


def read_runs(folder: Path) -> list[Run]:
    """All runs of a folder, by name.

    Raises:
        BenchmarkError: a file is none.
    """
    return [read_run(path) for path in sorted(folder.glob("*.json"))]


class SideMeasure(BaseModel):
    """What the JSONs of measures beside the runs have in common."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    dataset: str
    seed: int
    users: int
    epoch: int
    config: dict[str, Any]
    commit: str
    seconds: float
    machine: Machine


def read_measures(folder: Path, kind: type[M]) -> list[M]:
    """All JSONs of another kind of a folder, by name; none where there is no such folder.

    Raises:
        BenchmarkError: a file is none.
    """
    found = []
    for path in sorted(folder.glob("*.json")):
        try:
            found.append(kind.model_validate_json(path.read_text()))
        except ValidationError as error:
            raise BenchmarkError(f"{path}: not a measure of this version: {error}") from None
    return found


def means(figures: dict[str, float]) -> dict[str, float]:
    """Figures as they are recorded: six significant digits, those that no user has left out."""
    return {name: float(f"{value:.6g}") for name, value in figures.items() if math.isfinite(value)}


def overall(figures: dict[str, float]) -> dict[str, float]:
    """Without those of single outcomes, which would make a curve long."""
    return {name: value for name, value in figures.items() if ":" not in name}


def packed_users(found: PerUser, cases: Cases) -> dict[str, str]:
    """Hits of each test user by figure, with the numbers of targets they are out of; `Run.per_user` reads them.

    Keys: `user` (differences of ascending numbers), `targets` and `targets:<action>`, each recall by its name, as
    hits; `diversity` in thousandths.
    """
    met = np.array([outcomes.sum(0) for outcomes in cases.outcomes])
    of = {"targets": found.targets}
    of |= {f"targets:{name}": met[:, i] for i, name in enumerate(cases.actions) if met[:, i].any()}
    counts = {"user": np.diff(found.user, prepend=0), **of}
    for name, values in found.figures.items():
        measure, _, action = name.partition(":")
        if measure.startswith(("recall@", "unordered@", "equal@")):
            total = of.get(f"targets:{action}" if action else "targets")
            if total is not None:
                counts[name] = np.rint(np.nan_to_num(values) * total)
        elif measure == "diversity":
            counts[name] = np.rint(values * _PERMILLE)
    return {name: pack(values) for name, values in counts.items()}


def pack_bits(flags: NDArray[np.bool_]) -> str:
    """Flags as bits, deflated, in base 64."""
    return base64.b64encode(zlib.compress(np.packbits(flags).tobytes(), 9)).decode()


def unpack_bits(text: str, count: int) -> NDArray[np.bool_]:
    """What `pack_bits` packed of so many flags."""
    bits = np.frombuffer(zlib.decompress(base64.b64decode(text)), np.uint8)
    return np.unpackbits(bits, count=count).astype(np.bool_)


def pack(values: NDArray[Any]) -> str:
    """Whole numbers as little-endian int32, deflated, in base 64: a tenth of their length as text."""
    return base64.b64encode(zlib.compress(values.astype("<i4").tobytes(), 9)).decode()


def unpack(text: str) -> NDArray[np.int64]:
    """What `pack` packed."""
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), "<i4").astype(np.int64)
