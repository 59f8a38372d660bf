"""P1: from an event's publication to the list it calls for on the topic, against a consumer that only echoes."""

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from benchmarks.application import Application
from benchmarks.children import in_child
from benchmarks.echo import echo
from benchmarks.event_load import Load, Taken, run
from benchmarks.processes import CpuByPart
from benchmarks.result import Result, Stage, commit, machine, percentile, rounded, summary
from serving.config import AppSettings
from serving.stack import Progress
from streaming.config import KafkaSettings
from streaming.topics import create_topics

TIMES_ECHO: Final = 4.0
P99_ABOVE_MS: Final = 100.0


@dataclass(frozen=True)
class Scale:
    """How much is measured."""

    seconds: float
    warm_up_s: float
    repeats: int
    generations: int


FULL: Final = Scale(seconds=12.0, warm_up_s=2.0, repeats=5, generations=200)
QUICK: Final = Scale(seconds=3.0, warm_up_s=1.0, repeats=2, generations=20)

_STAGES: Final = {
    "append": "published -> appended to the log (producer, Kafka)",
    "apply": "appended -> applied (ingestor's poll, decode, store)",
    "make": "applied -> list made (hand-over, queue, generation)",
    "deliver": "list made -> received (publisher, Kafka, our poll)",
    "whole": "published -> received",
}


def measure(application: Application, quick: bool, progress: Progress, rate: float) -> Result:
    """Take the measure on a running application.

    Raises:
        BenchmarkError: an event was never answered.
    """
    began, scale = time.monotonic(), QUICK if quick else FULL
    kafka = application.settings.kafka
    other = aside(kafka)
    create_topics(other)
    ours: list[Taken] = []
    echoes: list[Taken] = []
    cpu = CpuByPart()
    for i in range(scale.repeats):
        progress("P1 repeats", i, scale.repeats)
        with echo(other):
            echoes.append(in_child(run, _load(application, other, rate, scale, i, echoed=True)))
        with cpu:
            ours.append(in_child(run, _load(application, kafka, rate, scale, i, echoed=False)))
    progress("P1 repeats", 1, 1)
    progress("P1 stages", 0, 0)
    settings = application.settings
    model = settings.model
    probed = _load(application, kafka, rate, scale, scale.repeats, echoed=False)
    store = (settings.state.sequences, model.history, model.stride)
    staged = in_child(run, dataclasses.replace(probed, store=store)).stages
    alone = in_child(generation_alone, settings, list(application.user_ids), scale.generations)
    progress("P1 stages", 1, 1)
    costs = cpu.details("event", round(rate * (scale.warm_up_s + scale.seconds)) * scale.repeats)
    return _result(application, ours, echoes, staged, alone, costs, rate, scale, quick, time.monotonic() - began)


def aside(kafka: KafkaSettings) -> KafkaSettings:
    """Topics that the application does not read, for the echo."""
    return kafka.model_copy(
        update={"events": "bench.events", "recommendations": "bench.echoes", "items": "bench.items",
                "models": "bench.models", "dead_letters": "bench.dead-letters"}
    )  # fmt: skip


def generation_alone(settings: AppSettings, user_ids: Sequence[str], repeats: int) -> float:
    """Median ms to read one user's history and make a list, with nothing else in the way; in a process of its own."""
    import torch  # noqa: PLC0415 - only this process needs a model

    from pinrec.registry import Registry  # noqa: PLC0415
    from serving.answers import Answerer  # noqa: PLC0415
    from streaming.stores.lmdb import LmdbSequenceStore  # noqa: PLC0415

    torch.set_num_threads(settings.serving.threads)
    model = settings.model
    store = LmdbSequenceStore(settings.state.sequences, model.history, model.stride, readonly=True)
    registry = Registry(settings.state.registry)
    version = registry.current()
    assert version is not None, "the application is ready, so there is a version"
    bundle, answerer = registry.load(version), Answerer(store, settings.generation, settings.serving)
    times = []
    for i in range(repeats + 5):
        began = time.perf_counter()
        answerer.answer(bundle, [], [user_ids[i % len(user_ids)]])
        times.append((time.perf_counter() - began) * 1e3)
    store.close()
    return percentile(times[5:], 50)


def _load(application: Application, kafka: KafkaSettings, rate: float, scale: Scale, seed: int, echoed: bool) -> Load:
    return Load(
        kafka=kafka,
        user_ids=application.user_ids,
        item_ids=application.item_ids,
        rate=rate,
        seconds=scale.seconds,
        warm_up_s=scale.warm_up_s,
        seed=seed,
        echoed=echoed,
    )


def _result(
    application: Application,
    ours: Sequence[Taken],
    echoes: Sequence[Taken],
    staged: dict[str, list[float]],
    alone: float,
    costs: dict[str, float],
    rate: float,
    scale: Scale,
    quick: bool,
    seconds: float,
) -> Result:
    def over_rounds(rounds: Sequence[Taken], percent: float) -> list[float]:
        return [rounded(percentile(taken.latencies, percent)) for taken in rounds]

    value, spread = summary(over_rounds(ours, 50))
    baseline, echo_spread = summary(over_rounds(echoes, 50))
    p99, echo_p99 = (summary(over_rounds(rounds, 99))[0] for rounds in (ours, echoes))
    details = {
        "rate_per_s": rate,
        "events": sum(len(taken.latencies) for taken in ours),
        "superseded": sum(taken.superseded for taken in ours),
        "p90_ms": summary(over_rounds(ours, 90))[0],
        "baseline_p90_ms": summary(over_rounds(echoes, 90))[0],
        "p99_ms": p99,
        "baseline_p99_ms": echo_p99,
        "p99_above_baseline_ms": rounded(p99 - echo_p99),
        "generation_alone_ms": rounded(alone),
        "load_process_cpu_share": rounded(max(taken.cpu_share for taken in (*ours, *echoes))),
        **costs,
    }
    town = application.town
    return Result(
        id="P1",
        name="event published -> recommendations on the topic, p50",
        value=value,
        unit="ms",
        baseline_name="consume-produce echo, p50",
        baseline=baseline,
        ratio=rounded(value / baseline),
        goal=f"p50 <= {TIMES_ECHO:g}x the echo's, p99 <= {P99_ABOVE_MS:g} ms above the echo's",
        met=value <= TIMES_ECHO * baseline and p99 - echo_p99 <= P99_ABOVE_MS,
        spread={"value": spread, "baseline": echo_spread},
        samples={"value": over_rounds(ours, 50), "baseline": over_rounds(echoes, 50)},
        details=details,
        stages=_stages(staged, alone),
        protocol=(
            f"Open loop: {rate:g} events/s, evenly spaced, each a click or save of a random user of the town "
            f"({town.inhabitants:,} inhabitants, {town.past_events:,} past events, {town.items:,} items), so each "
            f"calls for a list; {scale.seconds:g} s a round after {scale.warm_up_s:g} s of warm-up, rounds of echo and "
            "application in turn. One process publishes (acks=all) and receives; the clock runs from when an event was "
            "due. The echo is one process that writes each event it polls to a second topic, with the ingestor's "
            "client options; the application is deploy/local.yaml, one replica of each, and idles during the echo's "
            "rounds as no process of it is stopped. Where a user's next event overtakes a list (latest wins), the "
            "later list answers both, and both count. Stages: one more round, with a reader of the store beside it; "
            "medians need not add up."
        ),
        seconds=round(seconds + application.start_seconds, 1),
        quick=quick,
        machine=machine(application.settings.state.root),
        commit=commit(),
    )


def _stages(staged: dict[str, list[float]], alone: float) -> list[Stage]:
    stages = [Stage(name=name, value=rounded(percentile(staged[key], 50)), unit="ms") for key, name in _STAGES.items()]
    alone_stage = Stage(name="(one list alone, model and store warm)", value=rounded(alone), unit="ms")
    return [*stages, alone_stage]
