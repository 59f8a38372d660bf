"""P4b: HTTP queries per second at 16 connections, against the usual stack under the same load, in turn."""

import json
import random
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Final

from benchmarks.application import Application
from benchmarks.batches import PROTOCOL, Batches
from benchmarks.children import in_child
from benchmarks.http_load import Answered, HttpLoad, run
from benchmarks.processes import CpuByPart
from benchmarks.queries import CONNECTIONS, PATH, K, checked
from benchmarks.result import ROOT, BenchmarkError, Result, commit, machine, percentile, rounded, summary
from benchmarks.usual.stack import UsualStack
from pinrec.config import Vocabulary
from serving.stack import Progress
from streaming.publisher import EventPublisher
from streaming.schema import EventCodec, UserEvent
from streaming.stores.lmdb import LmdbSequenceStore

GOAL: Final = 5.0
WORKERS: Final = 2
"""Processes that answer queries: Gateways, and workers of uvicorn."""
ENVIRONMENT: Final = ROOT / ".pinrec" / "usual-stack"


@dataclass(frozen=True)
class Scale:
    """How much is measured."""

    seconds: float
    warm_up_s: float
    repeats: int


FULL: Final = Scale(seconds=5.0, warm_up_s=1.0, repeats=5)
QUICK: Final = Scale(seconds=1.0, warm_up_s=0.5, repeats=2)


@dataclass
class Rounds:
    """Rounds of both sides at one length of the histories."""

    events: float
    """Mean length of a history."""
    batches: Batches
    ours: list[Answered] = field(default_factory=list)
    usual: list[Answered] = field(default_factory=list)
    cpu: CpuByPart = field(default_factory=CpuByPart)
    usual_cpu: Counter[str] = field(default_factory=Counter)


def measure(application: Application, quick: bool, progress: Progress) -> Result:
    """Take the measure on a running application, whose users all have full histories afterwards.

    It is deployed again with as many Gateways as the usual stack has workers, and with one in the end.

    Raises:
        DeployError: they did not come up.
        BenchmarkError: the usual stack does not start, a request failed, or an answer is not what was asked for.
    """
    began, scale = time.monotonic(), QUICK if quick else FULL
    settings = application.settings
    folder = settings.state.root / "usual"
    items = application.item_ids
    application.scale(gateways=WORKERS)
    with UsualStack(folder, ENVIRONMENT, WORKERS, settings.model, items, progress) as usual:
        given = _rounds(application, usual, scale, "P4b histories as they are", progress)
        progress("P4b filling the histories", 0, 0)
        _fill(application)
        progress("P4b filling the histories", 1, 1)
        full = _rounds(application, usual, scale, "P4b full histories", progress)
    application.scale(gateways=1)
    return _result(application, given, full, scale, quick, time.monotonic() - began)


def _rounds(application: Application, usual: UsualStack, scale: Scale, text: str, progress: Progress) -> Rounds:
    histories = _histories(application)
    usual.fill(histories)
    host, port = application.http
    bodies = [json.dumps({"user_id": user_id, "k": K}).encode() for user_id in histories]
    load = HttpLoad(host, port, PATH, bodies, CONNECTIONS, scale.seconds, scale.warm_up_s)
    rounds = Rounds(sum(map(len, histories.values())) / len(histories), Batches(application.url))
    for i in range(scale.repeats):
        progress(text, i, scale.repeats)
        before = Counter(usual.cpu_seconds())
        rounds.usual.append(in_child(run, replace(load, host="127.0.0.1", port=usual.port, seed=i)))
        rounds.usual_cpu.update(Counter(usual.cpu_seconds()) - before)
        with rounds.batches, rounds.cpu:
            rounds.ours.append(in_child(run, replace(load, seed=i)))
    checked(rounds.ours[-1].last_body)
    if (found := len(json.loads(rounds.usual[-1].last_body)["items"])) != K:
        raise BenchmarkError(f"{found} items from the usual stack; wanted {K}")
    progress(text, 1, 1)
    return rounds


def _histories(application: Application) -> dict[str, list[str]]:
    """User -> item ids, oldest first, of the users that have a history, as replicas read them."""
    settings = application.settings
    store = LmdbSequenceStore(
        settings.state.sequences, settings.model.history, settings.model.stride, settings.state.map_gib, readonly=True
    )
    try:
        found = store.read(application.user_ids)
    finally:
        store.close()
    known = zip(application.user_ids, found, strict=True)
    return {user_id: history.item_ids for user_id, history in known if history is not None}


def _fill(application: Application) -> None:
    """Publish clicks until every history holds as many events as it may, and return when they are applied."""
    rng, vocabulary = random.Random(0), Vocabulary()
    most = application.settings.model.history
    with EventPublisher(application.settings.kafka, EventCodec(vocabulary), linger_ms=5) as publisher:
        for user_id, item_ids in _histories(application).items():
            for _ in range(len(item_ids), most):
                item_id, surface = rng.choice(application.item_ids), rng.choice(vocabulary.surfaces)
                publisher.publish(
                    UserEvent(user_id=user_id, item_id=item_id, action="click", surface=surface, timestamp=time.time())
                )
        publisher.flush(timeout_s=60)
    application.await_idle(gateways=WORKERS)


def _result(application: Application, given: Rounds, full: Rounds, scale: Scale, quick: bool, seconds: float) -> Result:
    def rates(rounds: list[Answered]) -> list[float]:
        return [rounded(answered.rate) for answered in rounds]

    value, spread = summary(rates(full.ours))
    baseline, usual_spread = summary(rates(full.usual))
    town, model = application.town, application.settings.model
    details = {
        "events_of_a_history": rounded(full.events),
        "p50_ms": _over_rounds(full.ours, 50),
        "p99_ms": _over_rounds(full.ours, 99),
        "baseline_p50_ms": _over_rounds(full.usual, 50),
        "baseline_p99_ms": _over_rounds(full.usual, 99),
        "events_of_a_shorter_history": rounded(given.events),
        "shorter_per_s": summary(rates(given.ours))[0],
        "shorter_p99_ms": _over_rounds(given.ours, 99),
        "shorter_baseline_per_s": summary(rates(given.usual))[0],
        "shorter_baseline_p99_ms": _over_rounds(given.usual, 99),
        "shorter_ratio": rounded(summary(rates(given.ours))[0] / summary(rates(given.usual))[0]),
        "load_process_cpu_share": rounded(max(a.cpu_share for r in (given, full) for a in (*r.ours, *r.usual))),
        **full.batches.details,
        **full.cpu.details("query", sum(answered.requests for answered in full.ours)),
    }
    asked = sum(answered.requests for answered in full.usual)
    details |= {
        f"baseline_cpu_ms_per_query_{part}": float(f"{s / asked * 1e3:.3g}") for part, s in full.usual_cpu.items()
    }
    return Result(
        id="P4b",
        name=f"HTTP queries at {CONNECTIONS} connections, full histories",
        value=value,
        unit="queries/s",
        baseline_name="FastAPI, uvicorn, SASRec, Redis and FAISS",
        baseline=baseline,
        ratio=rounded(value / baseline),
        goal=f">= {GOAL:g}x the baseline",
        met=value >= GOAL * baseline,
        spread={"value": spread, "baseline": usual_spread},
        samples={"value": rates(full.ours), "baseline": rates(full.usual)},
        details=details,
        stages=full.batches.stages,
        protocol=(
            f"Closed loop: {CONNECTIONS} kept connections, each with one request at a time: POST {PATH} with k={K} for "
            f"a random one of {town.inhabitants:,} known users, {town.items:,} items. {scale.seconds:g} s a round "
            f"after {scale.warm_up_s:g} s of warm-up, rounds in turn with the baseline. The baseline has "
            f"{WORKERS} workers of uvicorn (uvloop, httptools), and a Redis; the application is deploy/local.yaml "
            "with as many Gateways. Each request reads the user's item ids from Redis "
            f"(hiredis), encodes them anew by a SASRec of {model.layers} layers, width {model.width}, one thread a "
            "worker, searches the same kind of index and leaves out what was met. Both hold the same histories: those "
            f"of the town first ('shorter', {town.past_events:,} past events), then all filled up to {model.history}. "
            f"While one side is measured the other idles. The load is one process over raw sockets. {PROTOCOL}"
        ),
        seconds=round(seconds, 1),
        quick=quick,
        machine=machine(application.settings.state.root),
        commit=commit(),
    )


def _over_rounds(rounds: list[Answered], percent: float) -> float:
    return rounded(summary([percentile(answered.latencies, percent) for answered in rounds])[0])
