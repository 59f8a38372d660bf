"""Cold items: `python -m benchmarks.quality.cold --data ../data/kuairand_pure`, or `--town` for the simulated one.

PinRec is trained on the first part of a log, selected on the next, and asked in the last, with the whole catalogue as a
replica has it: an item that appeared after training has its vector from content and hashes of its id
(`pinrec.delta`). The JSON, of which docs/quality.md is made, tells how much of the answers and of the targets falls on
items with no event in training, with 1 to 5, and with more, and what is found of the targets; in the town also what
the recommended items are truly worth.
"""

import sys
import time
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from benchmarks.quality.cold_record import FEW, FOLDER, GROUPS, ColdRun, Group
from benchmarks.quality.models import plain
from benchmarks.quality.timed import Lists, Source, command, trained
from benchmarks.result import ROOT, commit, machine
from pinrec.contender import PinRec
from pinrec.measures import BATCH, K
from pinrec.protocols import Cases, Split, by_time


def measure(source: Source, seed: int) -> ColdRun:
    """Train, ask, and count."""
    since = time.perf_counter()
    split = by_time(source.log)
    contender, fitted = trained(source, split, seed)
    cases = of_its_time(split)
    lists = np.concatenate([listed(contender, batch) for batch in cases.batches(BATCH)])
    popular = np.concatenate([_popular(contender, batch) for batch in cases.batches(BATCH)])
    return ColdRun(
        dataset=source.name,
        seed=seed,
        users=len(cases),
        groups=groups(split, cases, lists, popular, source.reward(cases, lists) if source.reward else None),
        epoch=fitted.best_epoch,
        config=plain(source.recipe),
        commit=commit(),
        seconds=round(time.perf_counter() - since, 1),
        machine=machine(ROOT),
    )


def of_its_time(split: Split) -> Cases:
    """The test cases, with what is to be found among the items that exist when a list is asked for."""
    log, cases = split.log, split.test
    asked_at = log.events.timestamp[cases.hi - 1]
    there = [log.catalogue.created_at[wanted] <= at for wanted, at in zip(cases.targets, asked_at, strict=True)]
    return replace(
        cases,
        targets=[wanted[kept] for wanted, kept in zip(cases.targets, there, strict=True)],
        outcomes=[met[kept] for met, kept in zip(cases.outcomes, there, strict=True)],
    )


def listed(contender: PinRec, cases: Cases) -> Lists:
    """PinRec's lists of what exists when they are asked for: catalogue rows [users, K], -1 where there is no more."""
    catalogue = contender.bundle.catalogue
    asked = contender.requests(cases, K)
    to_come = [np.flatnonzero(catalogue.created_at > request.now).tolist() for request in asked]
    refused = [frozenset(catalogue.item_ids[row] for row in rows) for rows in to_come]
    return contender.answered([replace(r, exclude=ids) for r, ids in zip(asked, refused, strict=True)], K)


def groups(
    split: Split, cases: Cases, lists: Lists, popular: Lists, reward: NDArray[np.float64] | None
) -> dict[str, Group]:
    """The groups, by name.

    Args:
        cases: those the lists are for.
        lists, popular: catalogue rows [users, K], -1 where there is no more; of PinRec, and of the most popular.
        reward: [users, K], what each place of `lists` is worth.
    """
    trained = split.log.item[split.train]
    events = np.bincount(trained[trained >= 0], minlength=len(split.log.catalogue))
    group_of = np.digitize(events, [1, FEW + 1])
    found = {}
    for number, name in enumerate(GROUPS):
        mine = [targets[group_of[targets] == number] for targets in cases.targets]
        places, popular_places = (_places(made, group_of, number) for made in (lists, popular))
        found[name] = Group(
            items=int((group_of == number).sum()),
            answers=float(places.sum() / max(1, (lists >= 0).sum())),
            popular_answers=float(popular_places.sum() / max(1, (popular >= 0).sum())),
            targets=sum(map(len, mine)),
            found=_hits(mine, lists),
            popular_found=_hits(mine, popular),
            reward=float(reward[places].mean()) if reward is not None and places.any() else None,
        )
    return found


def _places(lists: Lists, group_of: Lists, number: int) -> NDArray[np.bool_]:
    return (lists >= 0) & (group_of[lists] == number)


def _hits(targets: list[Lists], lists: Lists) -> int:
    return sum(int(np.isin(wanted, row).sum()) for wanted, row in zip(targets, lists, strict=True))


def _popular(contender: PinRec, cases: Cases) -> Lists:
    catalogue = contender.bundle.catalogue
    ranked = contender.bundle.popularity.top(None, len(catalogue))
    lists = np.full((len(cases), K), -1, np.int64)
    for row, seen, request in zip(lists, cases.seen, contender.requests(cases, K), strict=True):
        unseen = ranked[~np.isin(ranked, seen) & (catalogue.created_at[ranked] <= request.now)][:K]
        row[: len(unseen)] = unseen
    return lists


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    return command(
        arguments,
        "cold",
        "Measure what becomes of items that were hardly or never seen in training.",
        FOLDER,
        measure,
        told,
    )


def told(run: ColdRun) -> list[str]:
    """What the command says of a measure."""
    recalls = {label: "-" if of.recall is None else f"{of.recall:.4f}" for label, of in run.groups.items()}
    return [
        f"{label}: {group.items} items, {group.answers:.1%} of the answers, recall@{K} {recalls[label]}"
        for label, group in run.groups.items()
    ]


if __name__ == "__main__":
    sys.exit(main())
