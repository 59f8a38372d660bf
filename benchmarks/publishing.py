"""P7: from trained weights to a version that serves, stage by stage."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import numpy as np
import torch

from benchmarks.result import Result, Stage, commit, machine, rounded, summary
from pinrec.bundle import Bundle
from pinrec.config import GateSettings, GenerationConfig, ModelConfig, TrainingConfig, Vocabulary
from pinrec.dataset import EventColumns
from pinrec.evaluation import prequential
from pinrec.gate import judge, sample_histories
from pinrec.index import use_threads
from pinrec.items import Catalogue, Item
from pinrec.model import PinRecModel
from pinrec.popularity import Popularity
from pinrec.registry import Registry
from pinrec.training import Learner
from serving.stack import Progress
from streaming.candidates import earlier_recalls

GOAL_S: Final = 60.0
_REPEATS: Final = 3
_CHANGED: Final = 100
_KINDS: Final = 100
_USERS: Final = 2_000
_PAST: Final = 60_000
_MINUTE: Final = 6_000
_HELD_OUT: Final = 1_000
NOTHING_POPULAR: Final = Popularity(np.full((len(Vocabulary().surfaces) + 1, 1), -1), np.zeros(0, np.int64))


def measure(work: Path, quick: bool, progress: Progress) -> Result:
    """Publish a catalogue again and again, beside the version before it and as if there were none."""
    began, items = time.monotonic(), 100_000 if quick else 1_000_000
    torch.set_num_threads(1)
    use_threads(1)
    config, training, generation, limits = ModelConfig(), TrainingConfig(), GenerationConfig(), GateSettings()
    registry, vocabulary = Registry(work / "models"), Vocabulary()
    progress("P7 catalogue", 0, 1)
    known = {item.item_id: item for item in map(made_up_item, range(items))}
    catalogue = Catalogue.of(list(known.values()), config)
    progress("P7 catalogue", 1, 1)
    events = _made_up_events(_PAST + (_REPEATS + 1) * _MINUTE, items, vocabulary)
    learner = Learner(config, vocabulary, training, generation.mode)
    learner.fit(
        events.before(_PAST), catalogue, training.initial_steps // 10 if quick else training.initial_steps,
        lambda step, steps, _: progress("P7 first model, steps", step, steps),
    )  # fmt: skip
    live = registry.load(registry.publish(_bundle_of(learner, catalogue, events.before(_PAST), None)))
    rounds: dict[str, list[float]] = {"value": [], "baseline": []}
    watch = _Watch()
    for at in range(_REPEATS):
        progress("P7 versions", at, _REPEATS)
        known_rows, rows = _PAST + at * _MINUTE, _PAST + (at + 1) * _MINUTE
        seen, held = events.before(rows + _HELD_OUT), rows
        learner.fit(events.before(rows), catalogue, training.round_steps, None, known_rows)
        with watch("item table and index, beside the version before"):
            bundle = _bundle_of(learner, catalogue, events.before(rows), live)
        with watch("events held out, predicted by both versions"):
            for one in (bundle, live):
                prequential(
                    one.model, one.table, one.catalogue, seen, held, mode=generation.mode, steps=generation.steps,
                    outcomes=one.outcomes, search=one.index.search,
                )  # fmt: skip
        with watch("earlier events, predicted by both versions"):
            earlier_recalls(live, bundle, seen, np.arange(known_rows), generation)
        with watch("files written, hashed, flushed, loaded and checked"):
            version = registry.publish(bundle, learner.state(), activate=False)
        with watch("lists of a sample of users compared, version activated"):
            judge(bundle, live, sample_histories(seen, limits.users, config.history), limits, generation)
            registry.activate(version)
        rounds["value"].append(made_s := sum(watch.last.values()))
        with watch("item table and index, anew"):
            _bundle_of(learner, catalogue, events.before(rows), None)
        took = watch.last
        rounds["baseline"].append(
            made_s - took["item table and index, beside the version before"] + took["item table and index, anew"]
        )
        with watch("of it, the item table"):
            learner.served().item_table(catalogue)
        with watch("load and check by a replica"):
            live = registry.load(version)
        # Another title for a few: the weights are those of the version before, and so are the other rows.
        changed = {f"item-{n}": made_up_item(n, "changed") for n in range(at * _CHANGED, (at + 1) * _CHANGED)}
        known |= changed
        with watch("catalogue, a few items changed"):
            following = Catalogue.following(catalogue, known, changed.keys(), config)
        with watch("item table and index, only those items changed"):
            _bundle_of(learner, following, events.before(rows), live)
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
        details={
            "recall_at_100": rounded(live.manifest.index.recall),
            "lists_visited": live.manifest.index.nprobe,
            "events_held_out": _HELD_OUT,
        },
        protocol=(
            f"One thread. The default model over {items:,} made-up items of {_KINDS} kinds, fitted for "
            f"{training.initial_steps} steps to {_PAST:,} events; before each version it is fitted for "
            f"{training.round_steps} steps to {_MINUTE:,} further ones, a minute's at 100 a second, so that every item "
            "vector changes. The value is all that is between the end of the fit and the activated version: the "
            "bundle, what the gate compares, the files. The version before is in the same registry, on the file system "
            "named above. The baseline makes the index as if there were none. Of the last stages none is part of "
            "either."
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


def bundle_of(
    model: PinRecModel, catalogue: Catalogue, live: Bundle | None, popularity: Popularity = NOTHING_POPULAR
) -> Bundle:
    """A bundle beside the one that is live."""
    return Bundle.of(model, catalogue, popularity, like=live)


def _bundle_of(learner: Learner, catalogue: Catalogue, events: EventColumns, live: Bundle | None) -> Bundle:
    popularity = Popularity.of(events, catalogue, learner.vocabulary)
    return bundle_of(learner.served(), catalogue, live, popularity)


def made_up_item(number: int, word: str = "about") -> Item:
    """The item of a number; `word` begins its title."""
    return Item(
        item_id=f"item-{number}",
        title=f"{word} thing {number % 997} of kind {number % 31}",
        categories=(f"category {number % _KINDS}",),
        created_at=1.7e9 + number,
    )


def _made_up_events(count: int, items: int, vocabulary: Vocabulary) -> EventColumns:
    """Events of users who keep to three kinds of items each, a hundredth of a second apart."""
    rng = np.random.default_rng(0)
    user = rng.integers(_USERS, size=count)
    kind = (7 * user + rng.integers(3, size=count)) % _KINDS
    item = kind + _KINDS * (items // _KINDS * rng.random(count) ** 3).astype(np.int64)  # a few are popular
    action = rng.choice(["impression", "click", "click", "save"], size=count)
    return EventColumns.of_columns(
        {
            "user_id": [f"user-{number}" for number in user],
            "item_id": [f"item-{number}" for number in item],
            "action": action.tolist(),
            "surface": rng.choice(vocabulary.surfaces, size=count).tolist(),
            "timestamp": 1.7e9 + np.arange(count) / 100,
            "item_type": ["item"] * count,
            "query": [None] * count,
        },
        vocabulary,
    )
