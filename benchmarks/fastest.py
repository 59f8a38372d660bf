"""P1b: the highest rate of events whose lists still come within a second, against a consumer that only echoes."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from benchmarks.application import Application
from benchmarks.children import in_child
from benchmarks.echo import echo
from benchmarks.event_load import Load, Taken, run
from benchmarks.freshness import aside
from benchmarks.processes import CpuByPart
from benchmarks.result import (
    REPORTED,
    BenchmarkError,
    Curve,
    Result,
    Stage,
    commit,
    machine,
    percentile,
    rounded,
    summary,
)
from benchmarks.search import search
from serving.stack import Progress
from streaming.config import KafkaSettings
from streaming.topics import create_topics

P99_MS: Final = 1_000.0
FIRST: Final = 100.0
MOST: Final = 12_800.0
"""Beyond this the load, one process, would measure itself."""


@dataclass(frozen=True)
class Scale:
    """How much is measured."""

    seconds: float
    warm_up_s: float
    repeats: int
    close: float = 1.1
    """The search ends where the highest good rate and the lowest bad one are no further apart."""


FULL: Final = Scale(seconds=6.0, warm_up_s=1.0, repeats=5)
QUICK: Final = Scale(seconds=1.5, warm_up_s=0.5, repeats=2, close=2.0)


@dataclass
class Tried:
    """Rates that were tried, each with its round; None where events went without an answer."""

    rounds: dict[float, Taken | None] = field(default_factory=dict)

    def good(self, rate: float) -> bool:
        """Whether the lists of this rate came in time."""
        taken = self.rounds[rate]
        return taken is not None and percentile(taken.latencies, 99) < P99_MS


def measure(application: Application, quick: bool, progress: Progress) -> Result:
    """Take the measure on a running application.

    Raises:
        BenchmarkError: not even the lowest rate is good, or the application does not become idle again.
    """
    began, scale = time.monotonic(), QUICK if quick else FULL
    kafka, other = application.settings.kafka, aside(application.settings.kafka)
    create_topics(other)
    echoes, ours = Tried(), Tried()
    with echo(other):
        progress("P1b rates of the echo", 0, 0)
        baseline = search(lambda rate: _try(application, other, rate, scale, echoes), scale.close, FIRST, MOST)
        steady_echoes = _steady(application, other, baseline, scale)
        progress("P1b rates of the echo", 1, 1)
    progress("P1b rates", 0, 0)
    rate = search(lambda rate: _try(application, kafka, rate, scale, ours), scale.close, FIRST, MOST)
    cpu = CpuByPart()
    with cpu:
        steady = _steady(application, kafka, rate, scale)
    # A rate that was good once may not be each time: then the next lower one that was tried is.
    while summary(_p99(steady))[0] >= P99_MS and (lower := [r for r in ours.rounds if r < rate and ours.good(r)]):
        rate, cpu = max(lower), CpuByPart()
        with cpu:
            steady = _steady(application, kafka, rate, scale)
    progress("P1b rates", 1, 1)
    return _result(application, rate, baseline, steady, steady_echoes, ours, cpu, scale, quick, began)


def _try(application: Application, kafka: KafkaSettings, rate: float, scale: Scale, tried: Tried) -> bool:
    try:
        tried.rounds[rate] = in_child(run, _load(application, kafka, rate, scale, len(tried.rounds)))
    except BenchmarkError:
        tried.rounds[rate] = None
    application.await_idle()
    return tried.good(rate)


def _steady(application: Application, kafka: KafkaSettings, rate: float, scale: Scale) -> list[Taken]:
    rounds = [in_child(run, _load(application, kafka, rate, scale, 1_000 + i)) for i in range(scale.repeats)]
    application.await_idle()
    return rounds


def _load(application: Application, kafka: KafkaSettings, rate: float, scale: Scale, seed: int) -> Load:
    return Load(
        kafka=kafka,
        user_ids=application.user_ids,
        item_ids=application.item_ids,
        rate=rate,
        seconds=scale.seconds,
        warm_up_s=scale.warm_up_s,
        seed=seed,
        echoed=kafka != application.settings.kafka,
    )


def _p99(rounds: Sequence[Taken]) -> list[float]:
    return [rounded(percentile(taken.latencies, 99)) for taken in rounds]


def _result(
    application: Application,
    rate: float,
    baseline: float,
    steady: Sequence[Taken],
    echoes: Sequence[Taken],
    tried: Tried,
    cpu: CpuByPart,
    scale: Scale,
    quick: bool,
    began: float,
) -> Result:
    def rates(rounds: Sequence[Taken]) -> list[float]:
        return [rounded(len(taken.latencies) / scale.seconds) for taken in rounds]

    events = round(rate * (scale.warm_up_s + scale.seconds)) * scale.repeats
    total = sum(cpu.seconds.values())
    by_cost = sorted(cpu.seconds.items(), key=lambda item: -item[1])
    curve = {at: taken for at, taken in sorted(tried.rounds.items()) if taken is not None}
    p99, town = summary(_p99(steady))[0], application.town
    return Result(
        id="P1b",
        name=f"highest rate of events whose lists come with p99 < {P99_MS / 1e3:g} s",
        value=rate,
        unit="events/s",
        baseline_name="consume-produce echo, by the same search",
        baseline=baseline,
        ratio=rounded(rate / baseline),
        goal=REPORTED,
        met=True,
        spread={"value": summary(rates(steady))[1], "baseline": summary(rates(echoes))[1]},
        samples={"value": rates(steady), "baseline": rates(echoes)},
        details={
            "p50_ms": summary([percentile(taken.latencies, 50) for taken in steady])[0],
            "p99_ms": p99,
            "baseline_p99_ms": summary(_p99(echoes))[0],
            "superseded_share": rounded(
                sum(taken.superseded for taken in steady) / sum(len(taken.latencies) for taken in steady)
            ),
            "load_process_cpu_share": rounded(max(taken.cpu_share for taken in steady)),
            "baseline_load_process_cpu_share": rounded(max(taken.cpu_share for taken in echoes)),
            **cpu.details("event", events),
        },
        stages=[
            Stage(name=f"CPU time, {part.replace('_', ' ')}", value=rounded(100 * s / total), unit="%")
            for part, s in by_cost
        ],
        curve=Curve(
            x_name="events/s",
            y_name="ms until the list is there",
            x=list(curve),
            y={
                f"p{percent}": [rounded(percentile(taken.latencies, percent)) for taken in curve.values()]
                for percent in (50, 99)
            },
        ),
        protocol=(
            f"As P1, but at rates that are doubled from {FIRST:g} events/s until p99 reaches {P99_MS / 1e3:g} s or an "
            f"event has no list, then narrowed down to within {scale.close - 1:.0%}; {scale.seconds:g} s a round after "
            f"{scale.warm_up_s:g} s of warm-up, and the application becomes idle between the rates. At the rate found "
            f"{scale.repeats} more rounds are taken: the samples are the events answered in a second of each, and the "
            "stages what share of all CPU time each part takes in them. Where a user's next event overtakes a list, "
            f"the later list answers both ('superseded'). {town.inhabitants:,} inhabitants, {town.items:,} items. "
            f"Rates beyond {MOST:,.0f} are not tried: the load is one process, its share of one core is given."
        ),
        seconds=round(time.monotonic() - began, 1),
        quick=quick,
        machine=machine(application.settings.state.root),
        commit=commit(),
    )
