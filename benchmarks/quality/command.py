"""`python -m benchmarks.quality`: run one model on one split of one log, or go on with a run that was cut off.

python -m benchmarks.quality --data ../data/ml1m --protocol loo --model sasrec --seed 0
"""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from benchmarks.quality.models import MODELS
from benchmarks.quality.process import add_trial, ended, results, use_all_cores
from benchmarks.quality.record import PROTOCOLS, RESULTS, read_run
from benchmarks.result import ROOT
from streaming.process import keep_freed_memory

if TYPE_CHECKING:
    from benchmarks.quality.run import Prepared
    from pinrec.selection import Fitted

_EXAMPLE: Final = (
    "Example: python -m benchmarks.quality --data ../data/kuairand_pure --protocol disjoint --fold 2 --model popular"
)


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit code: 2 where the log or the settings are at fault, 130 when interrupted."""
    options = _parse(arguments)
    keep_freed_memory()
    use_all_cores()
    from benchmarks.quality.run import Prepared, Wanted, use_device  # noqa: PLC0415 - after the set-up

    wanted = Wanted(
        data=options.data,
        protocol=options.protocol,
        model=options.model,
        seed=options.seed,
        fold=options.fold,
        folds=options.folds,
        all_engage=options.all_engage or options.protocol == "loo",
        epochs=options.epochs,
        checkpoints=options.checkpoints,
    )
    out = results(options)

    def take() -> None:
        use_device(options.device)
        prepared = Prepared(wanted)
        if lender := MODELS[wanted.model].weights_of:
            recorded = read_run(out / f"{replace(wanted, model=lender).name}.json")
            again = replace(Wanted.again(recorded, wanted.data), checkpoints=wanted.checkpoints)
            fitted = prepared.borrow(Prepared(again, recorded=recorded))
        else:
            fitted = prepared.fit(progress=lambda fitted: print(_line(prepared, fitted), flush=True))
        run = prepared.test(fitted)
        told = {name: value for name, value in run.test.items() if ":" not in name and "@" in name}
        figures = ", ".join(f"{name} {value:.4f}" for name, value in told.items())
        print(f"{wanted.name}: test {figures}; epoch {fitted.best_epoch} selected; {run.write(out)}", flush=True)

    return ended(wanted.name, take, "goes on from the last whole epoch")


def _line(prepared: "Prepared", fitted: "Fitted") -> str:
    point, metric = fitted.curve[-1], prepared.selection.metric
    loss = "" if point.loss is None else f"  loss {point.loss:.4f}"
    valid = "" if point.valid is None else f"  valid {metric} {point.valid[metric]:.4f}"
    best = f" (best {fitted.value(metric):.4f} at {fitted.best_epoch})" if fitted.valid else ""
    epoch = f"epoch {point.epoch}/{prepared.contender.epochs}"
    return f"{prepared.wanted.name}  {epoch}{loss}{valid}{best}  {point.seconds:.0f} s"


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quality",
        description="Fit a model on a split of a log, select its epoch on validation, test it, and record the run.",
        epilog=_EXAMPLE,
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with interactions.csv.gz, in the plain form")
    parser.add_argument(
        "--protocol", choices=PROTOCOLS, required=True, help="loo: leave one out; disjoint: other users"
    )
    parser.add_argument("--model", choices=tuple(MODELS), required=True, metavar="NAME", help=", ".join(MODELS))
    parser.add_argument("--seed", type=int, default=0, help="of the model (default: 0); splits do not depend on it")
    parser.add_argument("--fold", type=int, default=0, help="disjoint: the fold to test on, from 0 (default: 0)")
    parser.add_argument(
        "--folds", type=int, default=5, help="disjoint: into how many the users are divided (default: 5)"
    )
    parser.add_argument("--all-engage", action="store_true", help="disjoint: every action is an outcome, dislikes too")
    parser.add_argument("--device", default="auto", help="cpu, cuda or auto (default: the GPU where there is one)")
    parser.add_argument("--checkpoints", type=Path, help="folder of the checkpoints (default: .pinrec/quality)")
    add_trial(parser, f"folder of the JSONs (default: {RESULTS.relative_to(ROOT)})")
    return parser.parse_args(arguments)
