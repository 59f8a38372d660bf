"""P11: many minutes of load: memory must stay as it is, no lag may grow, no request may fail."""

import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import psutil

from benchmarks.application import Application
from benchmarks.processes import part_of
from benchmarks.result import BenchmarkError, Result, Stage, commit, machine, percentile, rounded
from benchmarks.sustained import Sustained, watched
from serving.api import Status
from serving.stack import Progress

EVENTS_PER_S: Final = 200.0
QUERIES_PER_S: Final = 50.0
FLAT: Final = 0.05
"""Growth of all resident memory over the time after the warm-up that still counts as none."""
WARM_UP: Final = 0.25
"""Share of the time after which memory should no longer grow: caches are full, every path was taken."""
MOST_LAG_S: Final = 2.0
_LOOK_S: Final = 5.0


@dataclass
class Look:
    """One look at the running application."""

    at: float
    rss_mib: dict[str, float]
    """By part; pages that processes share count in each."""
    lag: int
    """Events published and not applied."""


@dataclass
class Watched:
    """All looks, in order."""

    looks: list[Look] = field(default_factory=list)

    def look(self, status: Status) -> None:
        """Take one look."""
        lag = sum(ingestor["lag"] for ingestor in status.ingestors)
        self.looks.append(Look(time.time(), _resident(), lag))


def measure(application: Application, minutes: float, quick: bool, progress: Progress) -> Result:
    """P11 on a running application.

    Raises:
        BenchmarkError: nothing was answered, or nothing could be seen.
    """
    began, seen = time.monotonic(), Watched()
    rates = EVENTS_PER_S, QUERIES_PER_S
    sustained = watched(application, "P11", rates, 60 * minutes, seen.look, _LOOK_S, progress)
    return result(application, sustained, seen, minutes, quick, time.monotonic() - began)


def _resident() -> dict[str, float]:
    """MiB by part; the load itself is not counted."""
    found: dict[str, float] = defaultdict(float)
    for process in psutil.Process().children(recursive=True):
        try:
            title = " ".join(process.cmdline())
            if "multiprocessing" not in title:
                found[part_of(title)] += process.memory_info().rss / 2**20
        except psutil.Error:
            continue
    return dict(found)


def growth(looks: Sequence[Look], part: str | None = None) -> tuple[float, float]:
    """(MiB at the warm-up's end, MiB grown from there to the end) by a straight line through all looks after it."""
    begin, end = looks[0].at, looks[-1].at
    settled = [look for look in looks if look.at >= begin + WARM_UP * (end - begin)]
    x = np.array([look.at for look in settled])
    y = np.array([sum(look.rss_mib.values()) if part is None else look.rss_mib.get(part, 0.0) for look in settled])
    slope, at_start = np.polyfit(x - x[0], y, 1)
    return float(at_start), float(slope * (x[-1] - x[0]))


def result(
    application: Application, sustained: Sustained, seen: Watched, minutes: float, quick: bool, seconds: float
) -> Result:
    """The measure.

    Raises:
        BenchmarkError: nothing was answered, or nothing could be seen.
    """
    looks = seen.looks
    if not sustained.asked:
        raise BenchmarkError(f"no query was answered: {'; '.join(sustained.failures[:3])}")
    if len(looks) < 8:
        raise BenchmarkError(f"{len(looks)} looks at memory; measure for longer")
    start, grown = growth(looks)
    parts = sorted({part for look in looks for part in look.rss_mib})
    half = len(looks) // 2
    lag, later_lag = (max(look.lag for look in some) for some in (looks[:half], looks[half:]))
    failed = len(sustained.failures)
    latencies = [asked.ms for asked in sustained.asked]
    flat = grown <= FLAT * start
    town = application.town
    totals = [rounded(sum(look.rss_mib.values())) for look in looks]
    earlier, later = totals[:half], totals[half:]
    return Result(
        id="P11",
        name=f"resident memory after {minutes:g} minutes of load",
        value=rounded(start + grown),
        unit="MiB",
        baseline_name="at the end of the warm-up",
        baseline=rounded(start),
        ratio=rounded((start + grown) / start),
        goal=f"<= {1 + FLAT:g}x; lag never above {MOST_LAG_S:g} s of events; 0 failed requests",
        met=flat and later_lag <= MOST_LAG_S * EVENTS_PER_S and not failed,
        spread={"value": (min(later), max(later)), "baseline": (min(earlier), max(earlier))},
        samples={"value": later, "baseline": earlier},
        details={
            "queries": len(latencies) + failed,
            "events": sustained.events,
            "failed": failed,
            "most_lag_events_first_half": lag,
            "most_lag_events_second_half": later_lag,
            "p50_ms": rounded(percentile(latencies, 50)),
            "p99_ms": rounded(percentile(latencies, 99)),
            **{f"grown_mib_{part}": rounded(growth(looks, part)[1]) for part in parts},
        },
        stages=[Stage(name=part, value=rounded(sum(growth(looks, part))), unit="MiB") for part in parts],
        protocol=(
            f"Open loop for {minutes:g} minutes: {EVENTS_PER_S:g} events/s and {QUERIES_PER_S:g} queries/s (k=20) of "
            f"{town.inhabitants:,} users and {town.items:,} items; the trainer publishes every "
            f"{application.settings.trainer.interval_s:g} s. Memory is the sum over all processes of the application, "
            f"shared pages in each; a straight line through the looks of the last {1 - WARM_UP:.0%} of the time gives "
            "start and growth. Stages: memory at the end, by part. Samples: both halves of the time, a look every "
            f"{_LOOK_S:g} s. The trainer holds the newest trainer.max_events events, so it grows until it has them."
        ),
        seconds=round(seconds + application.start_seconds, 1),
        quick=quick,
        machine=machine(application.settings.state.root),
        commit=commit(),
    )
