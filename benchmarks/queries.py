"""P4: HTTP queries per second at 16 connections, against an application that does nothing behind the same ingress."""

import json
import logging
import time
from typing import Final

from benchmarks.application import Application
from benchmarks.batches import PROTOCOL, Batches
from benchmarks.children import in_child
from benchmarks.http_load import Answered, HttpLoad, run
from benchmarks.processes import CpuByPart
from benchmarks.result import BenchmarkError, Result, commit, machine, percentile, rounded, summary
from serving.stack import Progress

GOAL: Final = 0.6
CONNECTIONS: Final = 16
K: Final = 20
PATH: Final = "/v1/recommendations"
_NOOP: Final = "bench-noop"

_SECONDS: Final = 8.0
_WARM_UP_S: Final = 2.0
_REPEATS: Final = 5
_QUICK_SECONDS: Final = 2.0
_QUICK_REPEATS: Final = 2


def measure(application: Application, quick: bool, progress: Progress) -> Result:
    """Take the measure on a running application.

    Raises:
        BenchmarkError: a request failed, or an answer is not what was asked for.
    """
    from ray import serve  # noqa: PLC0415 - only after the cluster has set what Ray reads at import

    from benchmarks.noop import Noop  # noqa: PLC0415

    began = time.monotonic()
    repeats, seconds = (_QUICK_REPEATS, _QUICK_SECONDS) if quick else (_REPEATS, _SECONDS)
    bodies = [json.dumps({"user_id": user_id, "k": K}).encode() for user_id in application.user_ids]
    progress("P4 no-op application", 0, 0)
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    sample = checked(in_child(run, _load(application, PATH, bodies, 1.0, 0)).last_body)
    serve.run(Noop.bind(sample.decode()), name=_NOOP, route_prefix=f"/{_NOOP}")  # type: ignore[attr-defined]
    progress("P4 no-op application", 1, 1)
    ours: list[Answered] = []
    noop: list[Answered] = []
    cpu, batches = CpuByPart(), Batches(application.url)
    try:
        for i in range(repeats):
            progress("P4 repeats", i, repeats)
            noop.append(in_child(run, _load(application, f"/{_NOOP}{PATH}", bodies, seconds, i)))
            with batches, cpu:
                ours.append(in_child(run, _load(application, PATH, bodies, seconds, i)))
    finally:
        serve.delete(_NOOP)
    progress("P4 repeats", 1, 1)
    value, spread = summary([answered.rate for answered in ours])
    baseline, noop_spread = summary([answered.rate for answered in noop])
    town = application.town
    return Result(
        id="P4",
        name=f"HTTP queries at {CONNECTIONS} connections",
        value=rounded(value),
        unit="queries/s",
        baseline_name="no-op Serve application behind the same ingress",
        baseline=rounded(baseline),
        ratio=rounded(value / baseline),
        goal=f">= {GOAL:.0%} of the baseline",
        met=value >= GOAL * baseline,
        spread={"value": spread, "baseline": noop_spread},
        samples={"value": [rounded(a.rate) for a in ours], "baseline": [rounded(a.rate) for a in noop]},
        details={
            "p50_ms": _over_rounds(ours, 50),
            "p99_ms": _over_rounds(ours, 99),
            "baseline_p50_ms": _over_rounds(noop, 50),
            "baseline_p99_ms": _over_rounds(noop, 99),
            "load_process_cpu_share": rounded(max(a.cpu_share for a in (*ours, *noop))),
            "answer_bytes": len(sample),
            **batches.details,
            **cpu.details("query", sum(answered.requests for answered in ours)),
        },
        stages=batches.stages,
        protocol=(
            f"Closed loop: {CONNECTIONS} kept connections, each with one request at a time: POST {PATH} with "
            f"k={K} for a random one of {town.inhabitants:,} known users ({town.past_events:,} past events, "
            f"{town.items:,} items). {seconds:g} s a round after {_WARM_UP_S:g} s of warm-up, rounds in turn with the "
            "baseline: a second application in the same cluster with one replica, an ordinary one of FastAPI, which "
            "answers the same requests with a constant of an answer's size (ours goes past FastAPI). "
            "The application is deploy/local.yaml, one replica of each. The load is "
            f"one process over raw sockets; its share of one core is given beside the figures. {PROTOCOL}"
        ),
        seconds=round(time.monotonic() - began, 1),
        quick=quick,
        machine=machine(application.settings.state.root),
        commit=commit(),
    )


def _load(application: Application, path: str, bodies: list[bytes], seconds: float, seed: int) -> HttpLoad:
    host, port = application.http
    return HttpLoad(host, port, path, bodies, CONNECTIONS, seconds, min(_WARM_UP_S, seconds), seed)


def _over_rounds(rounds: list[Answered], percent: float) -> float:
    return rounded(summary([percentile(answered.latencies, percent) for answered in rounds])[0])


def checked(body: bytes) -> bytes:
    """An answer that is worth measuring.

    Raises:
        BenchmarkError: it is none.
    """
    answer = json.loads(body)
    if len(answer["items"]) != K or answer["source"] != "model" or answer["degraded"]:
        raise BenchmarkError(
            f"{len(answer['items'])} items from {answer['source']}, degraded: {answer['degraded']}; wanted {K} "
            "from the model"
        )
    return body
