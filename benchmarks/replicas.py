"""P12: two Gateways against one, on this machine."""

import json
import time
from typing import Final

from benchmarks.application import Application
from benchmarks.children import in_child
from benchmarks.http_load import Answered, HttpLoad, run
from benchmarks.processes import CpuByPart
from benchmarks.queries import CONNECTIONS, PATH, K, checked
from benchmarks.result import REPORTED, Curve, Result, Stage, commit, machine, percentile, rounded, summary
from serving.stack import Progress

_SECONDS: Final = 8.0
_WARM_UP_S: Final = 2.0
_REPEATS: Final = 5


def measure(application: Application, quick: bool, progress: Progress) -> Result:
    """Take the measure on a running application, which is deployed again with more replicas, and with one in the end.

    Raises:
        BenchmarkError: a request failed, or an answer is not what was asked for.
        DeployError: the replicas did not come up.
    """
    began = time.monotonic()
    repeats, seconds = (2, 1.0) if quick else (_REPEATS, _SECONDS)
    rounds: dict[int, list[Answered]] = {}
    cpu: dict[int, CpuByPart] = {}
    for replicas in (1, 2):
        application.scale(replicas)
        rounds[replicas], cpu[replicas] = [], CpuByPart()
        for i in range(repeats):
            progress(f"P12 with {replicas} Gateways", i, repeats)
            with cpu[replicas]:
                rounds[replicas].append(in_child(run, _load(application, seconds, i)))
        checked(rounds[replicas][-1].last_body)
        progress(f"P12 with {replicas} Gateways", 1, 1)
    application.scale(1)
    one, two = ([rounded(a.rate) for a in rounds[replicas]] for replicas in (1, 2))
    value, spread = summary(two)
    baseline, one_spread = summary(one)
    per_query = {n: cpu[n].details("query", sum(a.requests for a in rounds[n])) for n in rounds}
    cores = {n: sum(cpu[n].seconds.values()) / (repeats * (seconds + _warm_up(seconds))) for n in rounds}
    return Result(
        id="P12",
        name=f"HTTP queries at {CONNECTIONS} connections, two Gateways",
        value=value,
        unit="queries/s",
        baseline_name="one Gateway",
        baseline=baseline,
        ratio=rounded(value / baseline),
        goal=REPORTED,
        met=True,
        spread={"value": spread, "baseline": one_spread},
        samples={"value": two, "baseline": one},
        details={
            "p99_ms": _over_rounds(rounds[2], 99),
            "baseline_p99_ms": _over_rounds(rounds[1], 99),
            "cores_busy": rounded(cores[2]),
            "baseline_cores_busy": rounded(cores[1]),
            "load_process_cpu_share": rounded(max(a.cpu_share for a in rounds[2])),
            **per_query[2],
            **{f"baseline_{name}": ms for name, ms in per_query[1].items()},
        },
        stages=[
            Stage(name=f"CPU time of a query, Gateways: {n}", value=rounded(sum(per_query[n].values())), unit="ms")
            for n in rounds
        ],
        curve=Curve(
            x_name="Gateways",
            y_name="queries/s",
            x=list(rounds),
            y={"queries/s": [baseline, value]},
        ),
        protocol=(
            f"As P4: {CONNECTIONS} kept connections, each with one request at a time, k={K}; {seconds:g} s a round "
            f"after {_warm_up(seconds):g} s of warm-up. The application is deployed with one Gateway, "
            "then again with two; its other parts, and the load, share the same cores. More "
            "replicas help as long as cores are idle: 'cores busy' says how many were not, and what a query costs then "
            "tells the rest."
        ),
        seconds=round(time.monotonic() - began, 1),
        quick=quick,
        machine=machine(application.settings.state.root),
        commit=commit(),
    )


def _warm_up(seconds: float) -> float:
    return min(_WARM_UP_S, 2 * seconds)


def _load(application: Application, seconds: float, seed: int) -> HttpLoad:
    host, port = application.http
    bodies = [json.dumps({"user_id": user_id, "k": K}).encode() for user_id in application.user_ids]
    return HttpLoad(host, port, PATH, bodies, CONNECTIONS, seconds, _warm_up(seconds), seed)


def _over_rounds(rounds: list[Answered], percent: float) -> float:
    return rounded(summary([percentile(answered.latencies, percent) for answered in rounds])[0])
