"""Keys and values in fewer bits: `python -m benchmarks.quality.kept --data ../data/kuairand_pure`, or `--town`.

One model, trained and asked as for cold items (`benchmarks.quality.cold`), makes each list with keys and values of each
type that a replica can keep them in (`serving.states_dtype`).
"""

import argparse
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.quality.cold import EVERY, Lists, Source, line, logged, town
from benchmarks.quality.kept_record import EXACT, FOLDER, TYPES, KeptIn, KeptRun
from benchmarks.quality.models import plain
from benchmarks.quality.process import use_all_cores
from benchmarks.result import ROOT, BenchmarkError, commit, machine
from pinrec.contender import PinRec
from pinrec.encoding import from_scratch
from pinrec.measures import BATCH, K, paired_bootstrap
from pinrec.protocols import Cases, by_time
from pinrec.selection import fit_selected
from streaming.simulator import TownConfig


def measure(source: Source, seed: int) -> KeptRun:
    """Train, and ask with each type."""
    since = time.perf_counter()
    split = by_time(source.log)
    contender = PinRec(split, source.recipe, seed)
    fitted = fit_selected(contender, split.valid, every=EVERY, progress=lambda f: print(line(f), flush=True))
    lists: dict[str, Lists] = {}
    for name in TYPES:
        encoder = partial(from_scratch, kept=getattr(torch, name))
        batches = [contender.ranked(batch, K, encoder) for batch in split.test.batches(BATCH)]
        lists[name] = np.concatenate(batches)
        print(f"lists with {name}: made", flush=True)
    return KeptRun(
        dataset=source.name,
        seed=seed,
        users=len(split.test),
        types=compared(split.test, lists),
        epoch=fitted.best_epoch,
        config=plain(source.recipe),
        commit=commit(),
        seconds=round(time.perf_counter() - since, 1),
        machine=machine(ROOT),
    )


def compared(cases: Cases, lists: dict[str, Lists]) -> dict[str, KeptIn]:
    """Each type's lists [users, K] (rows of the catalogue, -1 where there is no more) beside those of float32."""
    exact, exact_recall = lists[EXACT], _recall(cases, lists[EXACT])
    found = {}
    for name, made in lists.items():
        recall = _recall(cases, made)
        shared = sum(int((np.isin(row, other) & (row >= 0)).sum()) for row, other in zip(made, exact, strict=True))
        found[name] = KeptIn(
            recall=float(recall.mean()),
            same=shared / max(1, int((made >= 0).sum())),
            interval=None if name == EXACT else _interval(exact_recall, recall),
        )
    return found


def _recall(cases: Cases, lists: Lists) -> NDArray[np.float64]:
    pairs = zip(cases.targets, lists, strict=True)
    return np.array([np.isin(wanted, row).mean() for wanted, row in pairs])


def _interval(exact: NDArray[np.float64], recall: NDArray[np.float64]) -> tuple[float, float]:
    """Rounded, as the order of adding up differs between processors."""
    found = paired_bootstrap(exact, recall)
    return round(found.low, 6), round(found.high, 6)


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    options = _parse(arguments)
    use_all_cores()
    try:
        source = town(TownConfig(), options.epochs) if options.town else logged(options.data, options.epochs)
        run = measure(source, options.seed)
    except (BenchmarkError, ValueError) as error:
        print(f"quality: keys and values: {error}", file=sys.stderr)
        return 2
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"{run.dataset}-kept-seed{run.seed}.json"
    path.write_text(run.model_dump_json(indent=1) + "\n")
    for label, kept in run.types.items():
        print(f"{label}: recall@{K} {kept.recall:.4f}, {kept.same:.1%} of the places as with {EXACT}")
    print(path)
    return 0


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quality.kept",
        description="Measure what it costs to keep users' keys and values in fewer bits.",
        epilog="Example: python -m benchmarks.quality.kept --town",
    )
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--data", type=Path, help="folder with interactions.csv.gz, in the plain form")
    which.add_argument("--town", action="store_true", help="the past of the simulated town")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, help="in place of the config's, for a trial")
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder of the JSON")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
