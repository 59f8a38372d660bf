"""What the budgets of one trained model retrieve: a JSON that tells of every target whether each list holds it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from benchmarks.quality.record import RESULTS, pack, pack_bits, read_measures, run_name, unpack, unpack_bits
from benchmarks.result import Machine
from pinrec.protocols import Cases

FOLDER: Final = RESULTS / "budgets"
MODEL: Final = "budgets"
DEFAULT: Final = "default"

Shares = dict[str, float]
Sweep = tuple[str, tuple[str, ...]]
SWEEPS: Final[dict[str, tuple[Sweep, ...]]] = {
    "kuairand_pure": (("click", ("long_view", "like")), ("click", ("long_view",)), ("click", ("like",))),
    "ml1m": (("like", ("dislike",)),),
}
"""By data set: an outcome whose share goes from all to nothing, and those that share the rest evenly."""
STEPS: Final = 11


def named(shares: Shares) -> str:
    """Name of a budget: `click 70 %, like 30 %`."""
    return ", ".join(f"{name} {100 * share:.0f} %" for name, share in shares.items())


def swept(sweep: Sweep) -> list[Shares]:
    """The budgets of a sweep, from nothing to all for its first outcome."""
    falling, others = sweep
    found = []
    for step in range(STEPS):
        share = step / (STEPS - 1)
        budget = {falling: share} | dict.fromkeys(others, (1 - share) / len(others))
        found.append({name: value for name, value in budget.items() if value})
    return found


def budgets(dataset: str, default: Shares) -> dict[str, Shares]:
    """All that are measured, by name: the default, all of it for one of its outcomes, and the sweeps."""
    asked = [{name: 1.0} for name in default]
    asked += [shares for sweep in SWEEPS.get(dataset, ()) for shares in swept(sweep)]
    return {DEFAULT: default} | {named(shares): shares for shares in asked}


class BudgetRun(BaseModel):
    """What one JSON file holds.

    Attributes:
        of: name of the run whose model it is.
        budgets: shares of outcomes by name.
        sizes: lengths of the lists.
        targets: how many, of all test users together.
        user: the user of each target (`pack`, differences of ascending numbers).
        met: which targets met with each outcome (`pack_bits`).
        hits: "<budget>@<size>" -> which targets are in the lists.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    dataset: str
    seed: int
    fold: int
    of: str
    budgets: dict[str, Shares]
    sizes: tuple[int, ...]
    targets: int
    user: str
    met: dict[str, str]
    hits: dict[str, str]
    config: dict[str, Any]
    commit: str
    data_sha256: str
    seconds: float
    machine: Machine

    @property
    def name(self) -> str:
        """Name of the file, without its ending."""
        return run_name(self.dataset, "disjoint", MODEL, self.seed, self.fold)

    def write(self, folder: Path) -> Path:
        """Write the JSON, all of it or nothing; where it lies."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.name}.json"
        aside = path.with_suffix(".tmp")
        aside.write_text(json.dumps(self.model_dump(mode="json"), indent=1, allow_nan=False) + "\n")
        aside.replace(path)
        return path

    def users(self) -> NDArray[np.int64]:
        """int64[T], the user of each target, ascending."""
        return np.cumsum(unpack(self.user))

    def met_with(self, outcome: str) -> NDArray[np.bool_]:
        """bool[T], the targets that met with the outcome."""
        return unpack_bits(self.met[outcome], self.targets)

    def hit(self, budget: str, size: int) -> NDArray[np.bool_]:
        """bool[T], the targets in the lists of this budget."""
        return unpack_bits(self.hits[f"{budget}@{size}"], self.targets)


def packed_targets(cases: Cases) -> tuple[int, str, dict[str, str]]:
    """`targets`, `user` and `met` of a `BudgetRun`; outcomes that no target met with are left out."""
    user = np.repeat(cases.user, [len(targets) for targets in cases.targets])
    met = np.concatenate(cases.outcomes)
    packed = {name: pack_bits(met[:, i]) for i, name in enumerate(cases.actions) if met[:, i].any()}
    return len(user), pack(np.diff(user, prepend=0)), packed


def read_budgets(folder: Path) -> list[BudgetRun]:
    """See `read_measures`."""
    return read_measures(folder, BudgetRun)


def outcomes(runs: Sequence[BudgetRun]) -> list[str]:
    """Outcomes of the default budget that targets met with, the largest share first."""
    return [name for name in runs[0].budgets[DEFAULT] if all(name in run.met for run in runs)]
