"""P2 and P3: what a new event costs the model, and what many embeddings in one step save.

Both run in one process with one thread, on random weights: how long it takes does not depend on what they are.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch

from benchmarks.result import Curve, Result, commit, machine, percentile, rounded, summary
from benchmarks.untrained import untrained
from pinrec.bundle import Bundle
from pinrec.config import GenerationConfig, ModelConfig, Vocabulary
from pinrec.encoding import encode, from_scratch
from pinrec.generation import embed, generate
from pinrec.hashing import hash_id
from pinrec.history import History, HistoryEvent
from pinrec.items import Catalogue, Item
from pinrec.popularity import Popularity
from pinrec.requests import GenerationRequest
from pinrec.states import UserStates
from serving.stack import Progress
from streaming.process import keep_freed_memory

LEAST_SAVED: Final = 12.0
MOST_GROWTH: Final = 1.3
LEAST_GAIN: Final = 10.0
_NOW: Final = 1_767_225_600.0
_K: Final = 20
_ITEMS: Final = 10_000
_BUDGET: Final = 1 << 30
_HISTORIES: Final = (64, 256, 1_024)
_ENCODED: Final = 256
_MADE: Final = 16
_KEPT_BYTES: Final = 256 << 20
_BATCHES: Final = (1, 16)


@dataclass(frozen=True)
class Scale:
    """How often each side of a measure is run: `rounds` medians of `turns` calls."""

    rounds: int
    turns: int


FULL: Final = Scale(rounds=7, turns=20)
QUICK: Final = Scale(rounds=2, turns=3)


def measure_new_event(work: Path, quick: bool, progress: Progress) -> Result:
    """P2: the model's work after one new event, up to the embeddings, against encoding 256 events."""
    began, scale = time.monotonic(), QUICK if quick else FULL
    keep_freed_memory(_KEPT_BYTES)  # as a replica does
    torch.set_num_threads(1)
    details: dict[str, float] = {}
    ours: dict[int, list[float]] = {}
    anew: list[float] = []
    for at, history in enumerate(_HISTORIES):
        bundle = random_bundle(ModelConfig(history=history + 2 * scale.turns))
        for batch in _BATCHES:
            progress("P2 histories", 2 * at + (batch > 1), 2 * len(_HISTORIES))
            users = [BusyUser(number, history) for number in range(batch)]
            sides = _new_event(bundle, users, scale)
            for name, samples in sides.items():
                details[f"{name}_at_{history}_batch_{batch}_ms"] = rounded(1e3 * percentile(samples, 50))
            if batch == _BATCHES[-1]:
                ours[history] = sides["embeddings_after_one_event"]
                if history == _ENCODED:
                    anew = sides["encoding_anew"]
    progress("P2 histories", 1, 1)
    batch = _BATCHES[-1]
    value, spread = summary([1e3 * seconds for seconds in ours[_ENCODED]])
    baseline, baseline_spread = summary([1e3 * seconds for seconds in anew])
    growth = percentile(ours[_HISTORIES[-1]], 50) / percentile(ours[_HISTORIES[0]], 50)
    encoded = details[f"encoding_after_one_event_at_{_ENCODED}_batch_{batch}_ms"]
    details["encoding_anew_over_encoding_one_event"] = rounded(baseline / encoded)
    details[f"cost_at_{_HISTORIES[-1]}_over_cost_at_{_HISTORIES[0]}"] = rounded(growth)
    return Result(
        id="P2",
        name=f"generation after one new event, {batch} users in a batch",
        value=value,
        unit="ms",
        baseline_name=f"encoding {_ENCODED} events a user",
        baseline=baseline,
        ratio=rounded(value / baseline),
        goal=f"<= 1/{LEAST_SAVED:g} of the baseline; {_HISTORIES[-1]:,} events cost <= {MOST_GROWTH:g}x of "
        f"{_HISTORIES[0]}",
        met=value * LEAST_SAVED <= baseline and growth <= MOST_GROWTH,
        spread={"value": spread, "baseline": baseline_spread},
        samples={"value": [rounded(1e3 * s) for s in ours[_ENCODED]], "baseline": [rounded(1e3 * s) for s in anew]},
        details=details,
        curve=Curve(
            x_name="events of a history",
            y_name=f"ms for {batch} users",
            x=list(_HISTORIES),
            y={
                name.replace("_", " "): [details[f"{name}_at_{history}_batch_{batch}_ms"] for history in _HISTORIES]
                for name in ("encoding_anew", "embeddings_after_one_event", "list_after_one_event")
            },
        ),
        protocol=(
            f"One thread, the default model, histories of {', '.join(f'{h:,}' for h in _HISTORIES)} events, 1 and "
            f"{batch} users in a batch; each round is the median of {scale.turns} calls, and the sides take turns. "
            "Generation is the model's work up to the embeddings to search with: the new event is encoded on the kept "
            "keys and values (int8), and two steps of outcomes x offsets embeddings are made. The baseline is the "
            "encoding alone. Lists are embeddings, search and filling of the places, with an exact index of "
            f"{_ITEMS:,} items."
        ),
        seconds=round(time.monotonic() - began, 1),
        quick=quick,
        machine=machine(work),
        commit=commit(),
    )


def measure_many_embeddings(work: Path, quick: bool, progress: Progress) -> Result:
    """P3: sixteen embeddings in one step against sixteen steps of one."""
    began, scale = time.monotonic(), QUICK if quick else FULL
    torch.set_num_threads(1)
    offsets = tuple(30.0 * step for step in range(_MADE // 2))
    bundle = random_bundle(ModelConfig(offsets_s=offsets, history=_ENCODED + 2))
    several = GenerationConfig(steps=1, default_outcomes={"click": 1.0, "save": 1.0})
    single = GenerationConfig(mode="outcome", steps=_MADE, default_outcomes={"click": 1.0})
    requests = [BusyUser(number, _ENCODED).request(0) for number in range(_BATCHES[-1])]
    rounds: dict[str, list[float]] = {"value": [], "baseline": []}
    for at in range(scale.rounds):
        progress("P3 rounds", at, scale.rounds)
        for side, config in (("value", several), ("baseline", single)):
            times = []
            for _ in range(scale.turns):
                encoded = encode(bundle, requests)
                since = time.perf_counter()
                embed(bundle, requests, config, encoded)
                times.append(time.perf_counter() - since)
            rounds[side].append(1e3 * percentile(times, 50))
    progress("P3 rounds", 1, 1)
    value, spread = summary(rounds["value"])
    baseline, baseline_spread = summary(rounds["baseline"])
    return Result(
        id="P3",
        name=f"{_MADE} embeddings a user in one step, {len(requests)} users in a batch",
        value=value,
        unit="ms",
        baseline_name=f"{_MADE} steps of one embedding",
        baseline=baseline,
        ratio=rounded(value / baseline),
        goal=f"<= 1/{LEAST_GAIN:g} of the baseline, recall not lower",
        met=value * LEAST_GAIN <= baseline,
        spread={"value": spread, "baseline": baseline_spread},
        samples={side: [rounded(s) for s in samples] for side, samples in rounds.items()},
        protocol=(
            f"One thread, the default model with two outcomes and eight offsets, histories of {_ENCODED} events that "
            f"are encoded already; each round is the median of {scale.turns} calls, and the sides take turns. Met "
            "judges the time alone; what one step and sixteen find on a real log is among the ablations of "
            "docs/quality.md."
        ),
        seconds=round(time.monotonic() - began, 1),
        quick=quick,
        machine=machine(work),
        commit=commit(),
    )


def _new_event(bundle: Bundle, users: Sequence["BusyUser"], scale: Scale) -> dict[str, list[float]]:
    """Medians of a round's calls, s, of each side; from call to call every user has one event more."""
    config = GenerationConfig()
    requests = [[user.request(turn) for user in users] for turn in range(scale.turns + 1)]

    def embeddings(states: UserStates) -> Callable[[Sequence[GenerationRequest]], None]:
        def work(asked: Sequence[GenerationRequest]) -> None:
            for index, encoded in states(bundle, asked):
                embed(bundle, [asked[b] for b in index], config, encoded)

        return work

    rounds: dict[str, list[float]] = {}
    for _ in range(scale.rounds):
        states = [UserStates(_BUDGET) for _ in range(3)]
        sides: dict[str, Callable[[Sequence[GenerationRequest]], object]] = {
            "encoding_anew": lambda asked: from_scratch(bundle, asked),
            "list_anew": lambda asked: generate(bundle, asked, config),
            "encoding_after_one_event": lambda asked, kept=states[0]: kept(bundle, asked),  # type: ignore[misc]
            "embeddings_after_one_event": embeddings(states[1]),
            "list_after_one_event": lambda asked, kept=states[2]: generate(bundle, asked, config, kept),  # type: ignore[misc]
        }
        times: dict[str, list[float]] = {name: [] for name in sides}
        for asked in requests:
            for name, work in sides.items():
                since = time.perf_counter()
                work(asked)
                times[name].append(time.perf_counter() - since)
        for name, all_times in times.items():
            rounds.setdefault(name, []).append(percentile(all_times[1:], 50))  # the first call fills the states
    return rounds


class BusyUser:
    """Someone with many events on random items, a minute apart."""

    def __init__(self, number: int, history: int) -> None:
        rng = np.random.default_rng(number)
        self._number, self._history = number, history
        self._items = rng.integers(_ITEMS, size=history + 200)
        self._hashes = [hash_id(f"item-{item}") for item in self._items]

    def request(self, turn: int) -> GenerationRequest:
        """A request after the first events and `turn` further ones."""
        events = [
            HistoryEvent(_NOW - 1e6 + 60.0 * i, f"e{i:05d}", f"item-{self._items[i]}", self._hashes[i], 3, 0, False)
            for i in range(self._history + turn)
        ]
        return GenerationRequest(history=History.of(events), k=_K, now=_NOW, user_id=f"user-{self._number}")


def random_bundle(config: ModelConfig) -> Bundle:
    """Random weights over made-up items."""
    vocabulary = Vocabulary()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = untrained(config, vocabulary)
    catalogue = Catalogue.of([Item(f"item-{i}", f"word{i}") for i in range(_ITEMS)], config)
    ranked = np.tile(np.arange(_ITEMS), (len(vocabulary.surfaces) + 1, 1))
    return Bundle.of(model, catalogue, Popularity(ranked, np.arange(20)))
