"""What measures on a split by time share: a log or a town with a recipe, a model selected on it, and the command."""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from benchmarks.quality.models import MODELS, catalogue_config
from benchmarks.quality.process import add_trial, ended, results, use_all_cores
from benchmarks.quality.record import SideMeasure
from pinrec.config import Vocabulary
from pinrec.contender import PinRec, PinRecRecipe
from pinrec.dataset import EventColumns
from pinrec.items import Catalogue, Item
from pinrec.protocols import Cases, Split, UserLog
from pinrec.selection import Fitted, fit_selected
from streaming.log_columns import read_log_columns
from streaming.simulator import Town, TownConfig

M = TypeVar("M", bound=SideMeasure)
_OPENS_AT: Final = 1_760_000_000.0
_EVERY: Final = 4
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


def trained(source: Source, split: Split, seed: int) -> tuple[PinRec, Fitted]:
    """PinRec with the weights of the epoch that is best in validation."""
    contender = PinRec(split, source.recipe, seed)
    return contender, fit_selected(contender, split.valid, every=_EVERY, progress=lambda f: print(_line(f), flush=True))


def _line(fitted: Any) -> str:
    last = fitted.curve[-1]
    return f"epoch {last.epoch}, loss {last.loss:.4g}, {last.seconds:.0f} s"


def command(
    arguments: list[str] | None,
    name: str,
    description: str,
    folder: Path,
    measure: Callable[[Source, int], M],
    told: Callable[[M], Sequence[str]],
) -> int:
    """The command of a measure; returns its exit code.

    Args:
        name: of the module, and in the JSON's name.
        folder: of its JSONs among the results, and of the same name wherever else they go.
        measure: of a source and a seed.
        told: what is said of the result.
    """
    options = _parse(arguments, name, description)
    use_all_cores()

    def take() -> None:
        source = town(TownConfig(), options.epochs) if options.town else logged(options.data, options.epochs)
        run = measure(source, options.seed)
        path = results(options) / folder.name / f"{run.dataset}-{name}-seed{run.seed}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(run.model_dump_json(indent=1) + "\n")
        for said in (*told(run), path):
            print(said)

    return ended(name, take, "begins again")


def _parse(arguments: list[str] | None, name: str, description: str) -> argparse.Namespace:
    module = f"python -m benchmarks.quality.{name}"
    parser = argparse.ArgumentParser(prog=module, description=description, epilog=f"Example: {module} --town")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--data", type=Path, help="folder with interactions.csv.gz, in the plain form")
    which.add_argument("--town", action="store_true", help="the past of the simulated town")
    parser.add_argument("--seed", type=int, default=0)
    add_trial(parser, f"folder of the runs' JSONs; its own goes to {name}/")
    return parser.parse_args(arguments)
