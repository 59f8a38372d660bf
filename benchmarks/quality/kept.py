"""Keys and values in fewer bits: `python -m benchmarks.quality.kept --data ../data/kuairand_pure`, or `--town`.

One model, trained and asked as for cold items (`benchmarks.quality.cold`), makes each list with keys and values of each
type that a replica can keep them in (`serving.states_dtype`).
"""

import sys
import time
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.quality.kept_record import EXACT, FOLDER, TYPES, KeptIn, KeptRun
from benchmarks.quality.models import plain
from benchmarks.quality.timed import Lists, Source, command, trained
from benchmarks.result import ROOT, commit, machine
from pinrec.encoding import from_scratch
from pinrec.measures import BATCH, K, paired_bootstrap
from pinrec.protocols import Cases, by_time


def measure(source: Source, seed: int) -> KeptRun:
    """Train, and ask with each type."""
    since = time.perf_counter()
    split = by_time(source.log)
    contender, fitted = trained(source, split, seed)
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
    description = "Measure what it costs to keep users' keys and values in fewer bits."
    return command(arguments, "kept", description, FOLDER, measure, told)


def told(run: KeptRun) -> list[str]:
    """What the command says of a measure."""
    return [
        f"{label}: recall@{K} {kept.recall:.4f}, {kept.same:.1%} of the places as with {EXACT}"
        for label, kept in run.types.items()
    ]


if __name__ == "__main__":
    sys.exit(main())
