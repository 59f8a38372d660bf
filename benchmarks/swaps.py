"""P6 and P6b: what queries notice of a new version, and how old its newest event is when it serves.

The trainer publishes as it does in service. A swap lasts from the moment it begins to publish until some seconds after
the first answer of the new version; the rest, training included, is the steady state it is compared with.
"""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from benchmarks.application import Application
from benchmarks.result import BenchmarkError, Result, Stage, commit, machine, percentile, rounded, summary
from benchmarks.sustained import Asked, Sustained, watched
from serving.api import Status
from serving.stack import Progress

EVENTS_PER_S: Final = 100.0
QUERIES_PER_S: Final = 50.0
TIMES_STEADY: Final = 1.25
OLDEST_S: Final = 90.0
SATURATED_MS: Final = 1_000.0
"""With a steady p99 above this, queries wait for each other: what a swap adds to that says nothing."""
AFTER_S: Final = 5.0
"""After the first answer of a version its users' states and pages may still be cold."""
_LOOK_S: Final = 0.5


@dataclass
class Watched:
    """What the trainer said it was doing, as (epoch s, phase), and when each version's newest event was."""

    phases: list[tuple[float, str]] = field(default_factory=list)
    trained_until: dict[str, float] = field(default_factory=dict)
    refused: dict[str, list[str]] = field(default_factory=dict)
    """By candidate that the gate refused, the checks that it failed."""

    def look(self, status: Status) -> None:
        """Note one look."""
        trainer = status.trainer or {}
        self.phases.append((time.time(), trainer.get("phase", "")))
        if trainer.get("version"):
            self.trained_until.setdefault(trainer["version"], trainer["trained_until"])
        if refused := trainer.get("last_refused"):
            self.refused[refused["version"]] = [refusal["check"] for refusal in refused["refusals"]]


def measure(application: Application, minutes: float, quick: bool, progress: Progress) -> list[Result]:
    """P6 and P6b on a running application whose trainer publishes.

    Raises:
        BenchmarkError: fewer than three versions went live.
    """
    began, seen = time.monotonic(), Watched()
    rates = EVENTS_PER_S, QUERIES_PER_S
    sustained = watched(application, "P6", rates, 60 * minutes, seen.look, _LOOK_S, progress)
    return results(application, sustained, seen, minutes, quick, time.monotonic() - began)


def flips(asked: Sequence[Asked]) -> dict[str, float]:
    """Version -> when its first answer came, epoch s; without the version that was live at the start."""
    first: dict[str, float] = {}
    for one in asked:
        at = one.due + one.ms / 1e3
        first[one.version] = min(at, first.get(one.version, at))
    first.pop(asked[0].version, None)
    return first


def swap_windows(flipped: dict[str, float], phases: Sequence[tuple[float, str]]) -> list[tuple[float, float]]:
    """(from, until) of each swap: from when the trainer began to publish the version that then went live."""
    windows = []
    for at in sorted(flipped.values()):
        before = [(when, phase) for when, phase in phases if when <= at]
        publishing = [i for i, (_, phase) in enumerate(before) if phase == "publishing"]
        since = at - AFTER_S
        if publishing:
            first = publishing[-1]
            while first and before[first - 1][1] == "publishing":
                first -= 1
            since = before[first][0]
        windows.append((since, at + AFTER_S))
    return windows


def results(
    application: Application, sustained: Sustained, seen: Watched, minutes: float, quick: bool, seconds: float
) -> list[Result]:
    """Both measures of one run.

    Raises:
        BenchmarkError: nothing was answered, or fewer than three versions went live.
    """
    if not sustained.asked:
        raise BenchmarkError(f"no query was answered: {'; '.join(sustained.failures[:3])}")
    flipped = flips(sustained.asked)
    windows = swap_windows(flipped, seen.phases)
    if len(windows) < 3:
        raise BenchmarkError(f"{len(windows)} versions went live; at least 3 are needed: measure for longer")
    swapping = [[a.ms for a in sustained.asked if since <= a.due < until] for since, until in windows]
    # Each swap beside the steady time before it, so that what drifts over the run drifts in both.
    edges = [sustained.asked[0].due, *(until for _, until in windows[:-1])]
    steady = [
        [a.ms for a in sustained.asked if after <= a.due < since]
        for after, (since, _) in zip(edges, windows, strict=True)
    ]
    pairs = [(a, b) for a, b in zip(swapping, steady, strict=True) if len(a) >= 50 and len(b) >= 50]
    p99 = [rounded(percentile(a, 99)) for a, _ in pairs]
    steady_p99 = [rounded(percentile(b, 99)) for _, b in pairs]
    value, spread = summary(p99)
    baseline, steady_spread = summary(steady_p99)
    ages = [
        rounded(at - seen.trained_until[version]) for version, at in flipped.items() if version in seen.trained_until
    ]
    age, age_spread = summary(ages)
    interval = application.settings.trainer.interval_s
    town = application.town
    where = machine(application.settings.state.root)
    setting = (
        f"Open loop for {minutes:g} minutes: {EVENTS_PER_S:g} events/s and {QUERIES_PER_S:g} queries/s (k=20) of "
        f"{town.inhabitants:,} users and {town.items:,} items, trainer.interval_s = {interval:g}, everything "
        f"on one machine, the load beside it. Each user acts on items in vogue in three of {len(application.topics)} "
        "topics; every 45 s one of each goes and another comes."
    )
    failed = len(sustained.failures)
    p6 = Result(
        id="P6",
        name="HTTP p99 during a swap",
        value=value,
        unit="ms",
        baseline_name="steady, same run",
        baseline=baseline,
        ratio=rounded(value / baseline),
        goal=f"<= {TIMES_STEADY:g}x steady, at most {SATURATED_MS / 1e3:g} s; 0 failed or mixed-version answers",
        met=value <= TIMES_STEADY * baseline <= TIMES_STEADY * SATURATED_MS and not failed and not sustained.older,
        spread={"value": spread, "baseline": steady_spread},
        samples={"value": p99, "baseline": steady_p99},
        details={
            "minutes": minutes,
            "swaps": len(windows),
            "refused": len(seen.refused),
            **Counter(f"refused_by_{check}" for checks in seen.refused.values() for check in checks),
            "queries": len(sustained.asked) + failed,
            "events": sustained.events,
            "failed": failed,
            "older_after_newer": sustained.older,
            "p50_ms": _over([a for a, _ in pairs], 50),
            "baseline_p50_ms": _over([b for _, b in pairs], 50),
            "longest_ms": rounded(max(a.ms for a in sustained.asked)),
            "swap_s": summary([until - since for since, until in windows])[0],
        },
        stages=_stages(sustained.asked, seen.phases),
        protocol=(
            f"{setting} A swap lasts from when the trainer begins to publish until {AFTER_S:g} s after the first "
            "answer of the new version; it is compared with the time since the swap before, training included. "
            "Latencies run from when a query was due. That no answer mixes versions is tested in "
            "tests/integration/test_application.py, where every version has titles of its own; here an answer that is "
            "older than the one before it on its connection counts as mixed. Stages: p99 by what the trainer did."
        ),
        seconds=round(seconds + application.start_seconds, 1),
        quick=quick,
        machine=where,
        commit=commit(),
    )
    p6b = Result(
        id="P6b",
        name="age of the newest trained event when its version serves",
        value=age,
        unit="s",
        baseline_name="trainer.interval_s",
        baseline=interval,
        ratio=rounded(age / interval),
        goal=f"p50 <= {OLDEST_S:g} s at an interval of 60 s with 100,000 items",
        met=age <= OLDEST_S and interval == 60 and town.items >= 100_000,
        spread={"value": age_spread, "baseline": (interval, interval)},
        samples={"value": ages, "baseline": [interval] * len(ages)},
        details={"items": town.items, "versions": len(ages)},
        protocol=f"{setting} From Kafka's time of the newest event in a version to the first answer made by it.",
        seconds=round(seconds + application.start_seconds, 1),
        quick=quick,
        machine=where,
        commit=commit(),
    )
    return [p6, p6b]


def _over(rounds: Sequence[Sequence[float]], percent: float) -> float:
    return rounded(summary([percentile(latencies, percent) for latencies in rounds])[0])


def _stages(asked: Sequence[Asked], phases: Sequence[tuple[float, str]]) -> list[Stage]:
    """p99 of the queries by the trainer's phase when they were due."""
    of: dict[str, list[float]] = {}
    at = 0
    for one in asked:
        while at + 1 < len(phases) and phases[at + 1][0] <= one.due:
            at += 1
        if phases:
            of.setdefault(phases[at][1], []).append(one.ms)
    return [
        Stage(name=f"while the trainer is {phase}", value=rounded(percentile(latencies, 99)), unit="ms")
        for phase, latencies in sorted(of.items())
    ]
