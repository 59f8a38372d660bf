"""Cold items: `python -m benchmarks.quality.cold --data ../data/kuairand_pure`, or `--town` for the simulated one.

PinRec is trained on the first part of a log, selected on the next, and asked in the last, with the whole catalogue as a
replica has it: an item that appeared after training has its vector from content and hashes of its id
(`pinrec.delta`). The JSON, of which docs/quality.md is made, tells how much of the answers and of the targets falls on
items with no event in training, with 1 to 5, and with more, and what is found of the targets; in the town also what
the recommended items are truly worth.
"""

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.quality.cold_record import FEW, FOLDER, GROUPS, ColdRun, Group
from benchmarks.quality.models import MODELS, catalogue_config, plain
from benchmarks.quality.process import use_all_cores
from benchmarks.result import ROOT, BenchmarkError, commit, machine
from pinrec.config import Vocabulary
from pinrec.contender import PinRec, PinRecRecipe
from pinrec.dataset import EventColumns
from pinrec.items import Catalogue, Item
from pinrec.measures import BATCH, K
from pinrec.protocols import Cases, Split, UserLog, by_time
from pinrec.selection import fit_selected
from streaming.log_columns import read_log_columns
from streaming.simulator import Town, TownConfig

_OPENS_AT: Final = 1_760_000_000.0
EVERY: Final = 4
"""Epochs between two looks at the validation cases."""

Lists = NDArray[np.int64]


@dataclass(frozen=True)
class Source:
    """A log, a recipe for it, and where the truth is known the chance of a click on items of users."""

    name: str
    log: UserLog
    recipe: PinRecRecipe
    reward: Callable[[Cases, Lists], NDArray[np.float64]] | None = None


def logged(data: Path, epochs: int | None) -> Source:
    """A log of one's own."""
    name = data.resolve().name
    recipe = MODELS["pinrec"].config_for(name, "disjoint", epochs)
    found = read_log_columns(data, config=catalogue_config(recipe))
    return Source(name, UserLog.of(found.events, found.catalogue, found.vocabulary), recipe)


def town(config: TownConfig, epochs: int | None) -> Source:
    """The past of a simulated town, which knows what its inhabitants like."""
    place, vocabulary = Town(config, _OPENS_AT), Vocabulary()
    recipe = MODELS["pinrec"].config_for("town", "disjoint", epochs)
    model = recipe.model.model_copy(update={"content_width": config.content_width})
    events = list(place.past())
    names = ("user_id", "item_id", "action", "surface", "timestamp", "item_type", "query", "feed_id")
    columns = {name: [getattr(event, name) for event in events] for name in names}
    items = [
        Item(u.item_id, u.title, u.categories, u.embedding, u.created_at, u.author, u.numeric) for u in place.items()
    ]
    catalogue = Catalogue.of(items, model)
    log = UserLog.of(EventColumns.of_columns(columns, vocabulary), catalogue, vocabulary)

    def reward(cases: Cases, lists: Lists) -> NDArray[np.float64]:
        chances = np.zeros(lists.shape)
        for row, (user, list_K, hi) in enumerate(zip(cases.user, lists, cases.hi, strict=True)):
            shown = list_K >= 0
            ids = [catalogue.item_ids[item] for item in list_K[shown].tolist()]
            at = float(log.events.timestamp[hi - 1])
            chances[row, shown] = place.true_reward(log.events.user_ids[user], ids, "click", at)
        return chances

    return Source("town", log, replace(recipe, model=model), reward)


def measure(source: Source, seed: int) -> ColdRun:
    """Train, ask, and count."""
    since = time.perf_counter()
    split = by_time(source.log)
    contender = PinRec(split, source.recipe, seed)
    fitted = fit_selected(contender, split.valid, every=EVERY, progress=lambda f: print(line(f), flush=True))
    cases = split.test
    lists = np.concatenate([contender.ranked(batch, K) for batch in cases.batches(BATCH)])
    popular = np.concatenate([_popular(contender, batch) for batch in cases.batches(BATCH)])
    return ColdRun(
        dataset=source.name,
        seed=seed,
        users=len(cases),
        groups=groups(split, lists, popular, source.reward(cases, lists) if source.reward else None),
        epoch=fitted.best_epoch,
        config=plain(source.recipe),
        commit=commit(),
        seconds=round(time.perf_counter() - since, 1),
        machine=machine(ROOT),
    )


def groups(split: Split, lists: Lists, popular: Lists, reward: NDArray[np.float64] | None) -> dict[str, Group]:
    """The groups, by name.

    Args:
        lists, popular: catalogue rows [users, K], -1 where there is no more; of PinRec, and of the most popular.
        reward: [users, K], what each place of `lists` is worth.
    """
    trained = split.log.item[split.train]
    events = np.bincount(trained[trained >= 0], minlength=len(split.log.catalogue))
    group_of = np.digitize(events, [1, FEW + 1])
    cases, found = split.test, {}
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
    ranked = contender.bundle.popularity.top(None, len(contender.bundle.catalogue))
    lists = np.full((len(cases), K), -1, np.int64)
    for row, seen in zip(lists, cases.seen, strict=True):
        unseen = ranked[~np.isin(ranked, seen)][:K]
        row[: len(unseen)] = unseen
    return lists


def line(fitted: Any) -> str:
    """Of an epoch, for who waits."""
    last = fitted.curve[-1]
    return f"epoch {last.epoch}, loss {last.loss:.4g}, {last.seconds:.0f} s"


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit code."""
    options = _parse(arguments)
    use_all_cores()
    try:
        source = town(TownConfig(), options.epochs) if options.town else logged(options.data, options.epochs)
        run = measure(source, options.seed)
    except (BenchmarkError, ValueError) as error:
        print(f"quality: cold items: {error}", file=sys.stderr)
        return 2
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"{run.dataset}-cold-seed{run.seed}.json"
    path.write_text(run.model_dump_json(indent=1) + "\n")
    for label, group in run.groups.items():
        recall = "-" if group.recall is None else f"{group.recall:.4f}"
        print(f"{label}: {group.items} items, {group.answers:.1%} of the answers, recall@{K} {recall}")
    print(path)
    return 0


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quality.cold",
        description="Measure what becomes of items that were hardly or never seen in training.",
        epilog="Example: python -m benchmarks.quality.cold --town",
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
