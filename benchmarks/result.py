"""One measure's outcome: the figure, its baseline from the same run, and where and how both were taken."""

import os
import platform
import statistics
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
import psutil
from pydantic import BaseModel, ConfigDict, Field

ROOT: Final = Path(__file__).parent.parent
REPORTED: Final = "reported"
"""How a goal ends that sets no bound."""


class BenchmarkError(RuntimeError):
    """A measure could not be taken; the message says why."""


class Machine(BaseModel):
    """Where it was measured."""

    model_config = ConfigDict(frozen=True)

    cpu: str
    cores: int
    memory_gib: float
    kernel: str
    python: str
    filesystem: str

    def __str__(self) -> str:
        return (
            f"{self.cores} cores of {self.cpu}, {self.memory_gib:g} GiB, Linux {self.kernel}, {self.filesystem}, "
            f"Python {self.python}"
        )


class Stage(BaseModel):
    """One part of the whole, by its median."""

    model_config = ConfigDict(frozen=True)

    name: str
    value: float
    unit: str


class Curve(BaseModel):
    """How something depends on something else."""

    model_config = ConfigDict(frozen=True)

    x_name: str
    y_name: str
    x: list[float]
    y: dict[str, list[float]] = Field(description="name of a line -> its values, one for each x")


class Result(BaseModel):
    """What one JSON file holds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    name: str
    value: float = Field(description="median over the samples, where the protocol says nothing else")
    unit: str
    baseline_name: str
    baseline: float = Field(description="the same of what it is compared with, taken in the same run")
    ratio: float = Field(description="value / baseline")
    goal: str
    met: bool
    spread: dict[str, tuple[float, float]] = Field(description="(least, most) of `samples`")
    samples: dict[str, list[float]] = Field(
        description="each repeat (P11: look at memory), in order: 'value' and 'baseline'"
    )
    details: dict[str, float] = Field(default_factory=dict, description="further figures; names end in their unit")
    stages: list[Stage] = Field(default_factory=list)
    curve: Curve | None = None
    protocol: str
    seconds: float = Field(description="the measure took so long, set-up included")
    quick: bool = Field(description="a trial with small sizes, not a figure to quote")
    machine: Machine
    commit: str

    @property
    def outcome(self) -> str:
        """'met' or 'not met'; 'reported' where the goal sets no bound that could be met, whatever `met` says."""
        if self.goal.endswith(REPORTED):
            return REPORTED
        return "met" if self.met else "not met"

    @property
    def goal_and_outcome(self) -> str:
        """Both, for a sentence."""
        return self.goal if self.outcome == REPORTED else f"{self.goal}: {self.outcome}"


def summary(values: Sequence[float]) -> tuple[float, tuple[float, float]]:
    """(median, (least, most)).

    Raises:
        BenchmarkError: there are none.
    """
    if not values:
        raise BenchmarkError("nothing was measured")
    return rounded(statistics.median(values)), (rounded(min(values)), rounded(max(values)))


def percentile(values: Sequence[float], percent: float) -> float:
    """Linear interpolation between the two nearest values.

    Raises:
        BenchmarkError: there are none.
    """
    if not values:
        raise BenchmarkError("nothing was measured")
    return float(np.percentile(np.asarray(values), percent))


def rounded(value: float) -> float:
    """Four significant digits: more would be noise, and the file would not read well."""
    return float(f"{value:.4g}")


def machine(folder: Path) -> Machine:
    """This machine; `folder` is where the measures write."""
    return Machine(
        cpu=_cpu_model(),
        cores=len(os.sched_getaffinity(0)),
        memory_gib=round(psutil.virtual_memory().total / 2**30, 1),
        kernel=platform.release(),
        python=platform.python_version(),
        filesystem=_filesystem(folder),
    )


def commit() -> str:
    """The commit that is checked out, with `+` where its code was changed since; `unknown` without git."""
    try:
        head = _git("rev-parse", "--short=12", "HEAD")
        # What a run itself writes makes no other code of it.
        changed = _git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!benchmarks/results", ":!docs")
        return head + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True, timeout=30)
    return done.stdout.strip()


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _filesystem(folder: Path) -> str:
    """Type of the file system: on one in memory a flush costs nothing."""
    where = folder.resolve()
    mounts = {Path(p.mountpoint): p.fstype for p in psutil.disk_partitions(all=True)}
    return next((mounts[parent] for parent in (where, *where.parents) if parent in mounts), "unknown")
