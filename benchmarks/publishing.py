"""P7: from trained weights to a version that serves, stage by stage."""

import copy
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import numpy as np
import torch

from benchmarks.result import Result, Stage, commit, machine, rounded, summary
from pinrec.bundle import Bundle
from pinrec.config import ModelConfig, Vocabulary
from pinrec.index import use_threads
from pinrec.items import Catalogue, Item
from pinrec.model import PinRecModel
from pinrec.popularity import Popularity
from pinrec.registry import Registry
from serving.stack import Progress

GOAL_S: Final = 60.0
_REPEATS: Final = 3
_MOVED: Final = 0.02
_CHANGED: Final = 100
_NOTHING_POPULAR: Final = Popularity(np.full((len(Vocabulary().surfaces) + 1, 1), -1), np.zeros(0, np.int64))


def measure(work: Path, quick: bool, progress: Progress) -> Result:
    """Publish a catalogue again and again, beside the version before it and as if there were none."""
    began, items = time.monotonic(), 100_000 if quick else 1_000_000
    torch.set_num_threads(1)
    use_threads(1)
    config, registry = ModelConfig(), Registry(work / "models")
    progress("P7 catalogue", 0, 1)
    known = {item.item_id: item for item in map(made_up_item, range(items))}
    catalogue = Catalogue.of(list(known.values()), config)
    progress("P7 catalogue", 1, 1)
    torch.manual_seed(0)
    model = PinRecModel(config, Vocabulary()).eval()
    live = registry.load(registry.publish(bundle_of(model, catalogue, None)))
    rounds: dict[str, list[float]] = {"value": [], "baseline": []}
    watch = _Watch()
    for at in range(_REPEATS):
        progress("P7 versions", at, _REPEATS)
        model = _moved(model, at)
        with watch("item table and index, beside the version before"):
            bundle = bundle_of(model, catalogue, live)
        with watch("files written, hashed, flushed, loaded and checked"):
            version = registry.publish(bundle)
        rounds["value"].append(made_s := sum(watch.last.values()))
        with watch("item table and index, anew"):
            bundle_of(model, catalogue, None)
        took = watch.last
        rounds["baseline"].append(
            made_s - took["item table and index, beside the version before"] + took["item table and index, anew"]
        )
        with watch("of it, the item table"):
            model.item_table(catalogue)
        with watch("load and check by a replica"):
            live = registry.load(version)
        # Another title for a few: the weights are those of the version before, and so are the other rows.
        changed = {f"item-{n}": made_up_item(n, "changed") for n in range(at * _CHANGED, (at + 1) * _CHANGED)}
        known |= changed
        with watch("catalogue, a few items changed"):
            following = Catalogue.following(catalogue, known, changed.keys(), config)
        with watch("item table and index, only those items changed"):
            bundle_of(live.model, following, live)
        registry.prune(1)
        watch.last.clear()
    progress("P7 versions", 1, 1)
    value, spread = summary(rounds["value"])
    baseline, baseline_spread = summary(rounds["baseline"])
    return Result(
        id="P7",
        name=f"publishing {items:,} items",
        value=value,
        unit="s",
        baseline_name="index built anew",
        baseline=baseline,
        ratio=rounded(value / baseline),
        goal=f"<= {GOAL_S:g} s",
        met=value <= GOAL_S,
        spread={"value": spread, "baseline": baseline_spread},
        samples={side: [rounded(s) for s in samples] for side, samples in rounds.items()},
        stages=[Stage(name=name, value=summary(samples)[0], unit="s") for name, samples in watch.samples.items()],
        details={"recall_at_100": rounded(live.manifest.index.recall), "lists_visited": live.manifest.index.nprobe},
        protocol=(
            f"One thread. A random model with the default sizes over {items:,} made-up items; before each version its "
            "weights move a little, so that every item vector changes. The version before is in the same registry, on "
            "the file system named above. The baseline makes the index as if there were none. Neither holds training "
            "state or the evaluation of the new version."
        ),
        seconds=round(time.monotonic() - began, 1),
        quick=quick,
        machine=machine(work),
        commit=commit(),
    )


class _Watch:
    """How long each stage took, s."""

    def __init__(self) -> None:
        self.samples: dict[str, list[float]] = {}
        self.last: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        since = time.perf_counter()
        yield
        self.last[name] = time.perf_counter() - since
        self.samples.setdefault(name, []).append(self.last[name])


def bundle_of(model: PinRecModel, catalogue: Catalogue, live: Bundle | None) -> Bundle:
    """A bundle without popular items, beside the one that is live."""
    return Bundle.of(model, catalogue, _NOTHING_POPULAR, like=live)


def made_up_item(number: int, word: str = "about") -> Item:
    """The item of a number; `word` begins its title."""
    return Item(
        item_id=f"item-{number}",
        title=f"{word} thing {number % 997} of kind {number % 31}",
        categories=(f"category {number % 100}",),
        created_at=1.7e9 + number,
    )


def _moved(model: PinRecModel, seed: int) -> PinRecModel:
    """The model after about what a round of training does to it."""
    moved = copy.deepcopy(model)
    torch.manual_seed(seed)
    with torch.no_grad():
        for weight in moved.parameters():
            if weight.ndim == 2:
                weight.add_(_MOVED * weight.std() * torch.randn_like(weight))
    return moved
