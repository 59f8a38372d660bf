"""What a budget over outcomes does: `python -m benchmarks.quality.budgets --data ../data/kuairand_pure --fold 0`.

It takes the model of a recorded run of PinRec-MT,OC and makes lists for the test users of its fold, as serving makes
them, under the default budget, under budgets of one outcome alone, and under a sweep between two sides. The JSON tells
of every target whether the lists hold it; docs/quality.md makes recalls, rates and their intervals of that.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.quality.budgets_record import FOLDER, BudgetRun, Shares, budgets, packed_targets
from benchmarks.quality.process import ended, use_all_cores
from benchmarks.quality.record import RESULTS, pack_bits, read_run, run_name
from benchmarks.quality.run import Prepared, Wanted
from benchmarks.result import ROOT, machine
from pinrec.config import GenerationConfig
from pinrec.contender import PinRec, PinRecRecipe
from pinrec.encoding import encode
from pinrec.generation import embed
from pinrec.measures import BATCH, K
from pinrec.protocols import Cases
from pinrec.retrieval import retrieve
from streaming.process import keep_freed_memory

MODEL: Final = "pinrec"


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    options = _parse(arguments)
    keep_freed_memory()
    use_all_cores()
    name = run_name(options.data.resolve().name, options.protocol, MODEL, options.seed, options.fold)

    def take() -> None:
        recorded = read_run(options.out / f"{name}.json")
        wanted = replace(Wanted.again(recorded, options.data), checkpoints=options.checkpoints)
        prepared = Prepared(wanted, recorded=recorded)
        prepared.fit(progress=lambda fitted: print(f"{name}  epoch {fitted.curve[-1].epoch}, anew", flush=True))
        print(budget_run(prepared).write(options.out / FOLDER.name), flush=True)

    return ended(name, take, "begins again")


def budget_run(prepared: Prepared) -> BudgetRun:
    """Make the lists of all budgets with the model that is fitted."""
    since = time.perf_counter()
    wanted, contender, recipe = prepared.wanted, prepared.contender, prepared.config
    assert isinstance(contender, PinRec)
    assert isinstance(recipe, PinRecRecipe)
    cases, sizes = prepared.split.test, (K, K * prepared.selection.embeddings)
    asked = budgets(wanted.dataset, recipe.generation.default_outcomes or contender.bundle.outcomes)
    hit = hits(contender, cases, list(asked.values()), sizes, recipe.generation)
    found = {f"{name}@{k}": pack_bits(hit[i, j]) for i, name in enumerate(asked) for j, k in enumerate(sizes)}
    targets, user, met = packed_targets(cases)
    return BudgetRun(
        dataset=wanted.dataset,
        seed=wanted.seed,
        fold=wanted.fold,
        of=wanted.name,
        budgets=asked,
        sizes=sizes,
        targets=targets,
        user=user,
        met=met,
        hits=found,
        config=prepared.described,
        commit=prepared.commit,
        data_sha256=prepared.data_sha256,
        seconds=round(time.perf_counter() - since, 1),
        machine=machine(ROOT),
    )


def hits(
    contender: PinRec, cases: Cases, asked: Sequence[Shares], sizes: Sequence[int], config: GenerationConfig
) -> NDArray[np.bool_]:
    """bool[budgets, sizes, targets of all cases]: which targets are in the lists of a budget.

    The lists are those of `pinrec.generation.generate`, with each history encoded once for all of them.
    """
    bundle, batches = contender.bundle, []
    for batch in cases.batches(BATCH):
        requests = contender.requests(batch, 1)
        encoded = encode(bundle, requests)
        length = encoded.cache.length_B
        hit = np.zeros((len(asked), len(sizes), batch.target_count), np.bool_)
        for i, shares in enumerate(asked):
            for j, size in enumerate(sizes):
                k = min(size, len(bundle.catalogue))
                wanted = [replace(request, k=k, outcomes=shares) for request in requests]
                lists = retrieve(bundle, wanted, embed(bundle, wanted, config, encoded), config)
                encoded.cache.rewind(length)
                hit[i, j] = np.concatenate(
                    [
                        np.isin(targets, [candidate.row for candidate in made])
                        for targets, made in zip(batch.targets, lists, strict=True)
                    ]
                )
        batches.append(hit)
    return np.concatenate(batches, axis=2)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quality.budgets",
        description="Measure what a budget over outcomes retrieves, with the model of a recorded run.",
        epilog="Example: python -m benchmarks.quality.budgets --data ../data/kuairand_pure --fold 0",
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with interactions.csv.gz, in the plain form")
    parser.add_argument("--protocol", choices=("disjoint",), default="disjoint")
    parser.add_argument("--seed", type=int, default=0, help="of the recorded run (default: 0)")
    parser.add_argument("--fold", type=int, default=0, help="of the recorded run (default: 0)")
    parser.add_argument("--checkpoints", type=Path, help="folder of the checkpoints (default: .pinrec/quality)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the runs' JSONs; its own go to budgets/")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
