"""Rounds of both sides in turn, and what they come to."""

import os
import shutil
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.result import BenchmarkError, Result, commit, machine, rounded, summary
from benchmarks.training_speed.environment import recbole_python, recbole_version
from benchmarks.training_speed.inputs import DROPOUT, HEADS, INNER, LAYERS, WIDTH, Events, recbole_config, write_atomic
from benchmarks.training_speed.record import ID, SIDES
from benchmarks.training_speed.side import Pass, Side
from pinrec.protocols import UserLog, leave_one_out
from serving.stack import Progress
from streaming.log_columns import read_log_columns

GOAL: Final = 2.0
LENGTH: Final = 200
_NAME: Final = "log"  # of the data set in RecBole, which has settings of its own for some names


@dataclass(frozen=True)
class Scale:
    """How much is measured.

    Attributes:
        windows: full windows in a step of PinRec's.
        steps: of each side in a round, by what it trains.
        users: RecBole is given so many of them; None: all.
    """

    windows: int
    repeats: int
    steps: dict[str, int]
    users: int | None = None


# Ten windows of 200 come near the 2,048 predictions that are RecBole's own default.
FULL: Final = Scale(windows=10, repeats=5, steps={"pinrec": 100, "rows": 1, "windows": 20})
QUICK: Final = Scale(windows=2, repeats=2, steps={"pinrec": 10, "rows": 1, "windows": 3}, users=300)
_WARM_UP: Final = {"pinrec": 20, "rows": 1, "windows": 2}


def measure(data: Path, work: Path, quick: bool, progress: Progress) -> Result:
    """Take the measure; RecBole's environment, its input and the logs are kept below `work`.

    Raises:
        BenchmarkError: RecBole cannot be installed, a side ended, or the two have not the same to learn from.
        ValueError: the log cannot be read or split; a sentence with the remedy.
    """
    began, scale, threads = time.monotonic(), QUICK if quick else FULL, _threads()
    progress("events", 0, 0)
    found = read_log_columns(data, all_engage=True)
    split = leave_one_out(UserLog.of(found.events, found.catalogue, found.vocabulary))
    shutil.rmtree(work / "atomic", ignore_errors=True)
    given = write_atomic(split, work / "atomic", _NAME, scale.users)
    progress("events", 1, 1)
    python = recbole_python(work / "recbole", progress)
    with ExitStack() as stack:
        progress("PinRec ready", 0, 0)
        pinrec = stack.enter_context(_pinrec(data, work, scale, threads))
        warm = pinrec.train("pinrec", _WARM_UP["pinrec"])
        progress("PinRec ready", 1, 1)
        progress("RecBole ready", 0, 0)
        batch = round(warm.predictions / warm.steps)
        job = {"threads": threads, "dataset": _NAME, "config": recbole_config(work / "atomic", LENGTH, batch)}
        recbole = stack.enter_context(Side("RecBole", _command(python, "recbole_side"), job, work / "run"))
        check_same(recbole.facts, given, threads)
        for what in ("rows", "windows"):
            recbole.train(what, _WARM_UP[what])
        progress("RecBole ready", 1, 1)
        passes = _rounds(pinrec, recbole, scale, progress)
    return result_of(passes, given, batch, threads, quick, time.monotonic() - began, work)


def check_same(facts: dict[str, float], given: Events, threads: int) -> None:
    """RecBole must have made as many predictions to learn, over as many items, as PinRec has.

    Raises:
        BenchmarkError: it has not.
    """
    expected = {"rows": given.predictions, "items": given.items, "threads": threads}
    if facts != expected:
        raise BenchmarkError(f"RecBole has {facts}, not {expected}: the two sides would not do the same work")


def result_of(
    passes: dict[str, list[Pass]], given: Events, batch: int, threads: int, quick: bool, seconds: float, work: Path
) -> Result:
    """Medians and spread of the passes of each of `SIDES`."""
    rates = {side: [p.predictions_per_s for p in passes[side]] for side in SIDES}
    median = {side: summary(rates[side])[0] for side in SIDES}
    details = {"threads": float(threads), "length": float(LENGTH), "items": float(given.items)}
    for side in SIDES:
        figures = {
            "per_s": rates[side],
            "step_ms": [1e3 * p.seconds / p.steps for p in passes[side]],
            "predictions_per_step": [p.predictions / p.steps for p in passes[side]],
            "events_per_s": [p.events / p.seconds for p in passes[side]],
        }
        details |= {f"{side}_{name}": summary(values)[0] for name, values in figures.items()}
    ratio = median["value"] / median["baseline"]
    return Result(
        id=ID,
        name="predictions learnt from",
        value=median["value"],
        unit="predictions/s",
        baseline_name=f"RecBole {recbole_version()} SASRec",
        baseline=median["baseline"],
        ratio=rounded(ratio),
        goal=f"at least {GOAL:g}x RecBole's SASRec",
        met=ratio >= GOAL,
        spread={side: summary(rates[side])[1] for side in SIDES},
        samples={side: [rounded(rate) for rate in rates[side]] for side in SIDES},
        details=details,
        protocol=_protocol(given, batch, threads, len(passes["value"])),
        seconds=round(seconds, 1),
        quick=quick,
        machine=machine(work),
        commit=commit(),
    )


def _rounds(pinrec: Side, recbole: Side, scale: Scale, progress: Progress) -> dict[str, list[Pass]]:
    """All rounds; every second one in the opposite order."""
    turns = {"value": (pinrec, "pinrec"), "baseline": (recbole, "rows"), "every_position": (recbole, "windows")}
    passes: dict[str, list[Pass]] = {side: [] for side in turns}
    for number in range(scale.repeats):
        progress("rounds", number, scale.repeats)
        for side in list(turns)[:: -1 if number % 2 else 1]:
            process, what = turns[side]
            passes[side].append(process.train(what, scale.steps[what]))
    progress("rounds", scale.repeats, scale.repeats)
    return passes


def _pinrec(data: Path, work: Path, scale: Scale, threads: int) -> Side:
    sizes = {
        "model": {"width": WIDTH, "layers": LAYERS, "heads": HEADS, "history": LENGTH, "dropout": DROPOUT},
        "training": {"window": LENGTH, "batch_users": scale.windows, "softmax": "exact"},
    }
    job = {"threads": threads, "data": str(data.resolve()), "settings": sizes}
    return Side("PinRec", _command(Path(sys.executable), "pinrec_side"), job, work / "run")


def _command(python: Path, module: str) -> list[str]:
    return [str(python), "-W", "ignore", "-m", f"benchmarks.training_speed.{module}"]


def _threads() -> int:
    """As many as cores, unless OMP_NUM_THREADS says otherwise."""
    return int(os.environ.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0)))


def _protocol(given: Events, batch: int, threads: int, repeats: int) -> str:
    return (
        f"The events that leave-one-out trains on ({given.events:,} of {given.items:,} items, {given.predictions:,} "
        f"predictions an epoch), in the same order for both; width {WIDTH}, {LAYERS} layers, {HEADS} heads, at most "
        f"{LENGTH} events of history, softmax over the whole catalogue, dropout {DROPOUT:g}, about {batch:,} "
        f"predictions a step (PinRec: windows of {LENGTH}; RecBole: as many rows, or windows with as many in the "
        "mean), Adam (PinRec: AdamW, with clipped gradients and averaged weights), the same torch on the CPU with "
        f"{threads} {'thread' if threads == 1 else 'threads'}; both processes keep the memory they free. RecBole's "
        f"feed-forward is {INNER} wide, PinRec's blocks are gated; PinRec further encodes times, actions and items' "
        "features, and multiplies matrices in bfloat16 in its softmax. One side trains while the other waits: "
        f"{repeats} rounds, every second one in the opposite order; figures are medians, with the least and the most. "
        "Only steps are timed, with the making of their batches: nothing is read, prepared or evaluated meanwhile."
    )
