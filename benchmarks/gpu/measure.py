"""The highest rate of requests that a large model answers in time."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch

from benchmarks.gpu.arrivals import Served, poisson, serve
from benchmarks.gpu.batch import Batch, LargeModel, random_request
from benchmarks.result import Curve, Result, commit, machine, percentile, rounded, summary
from benchmarks.search import search
from pinrec.config import ModelConfig
from serving.stack import Progress

GOAL_PER_S: Final = 800.0
P90_MS: Final = 65.0
_FIRST: Final = 50.0
_MOST: Final = 51_200.0
_USERS: Final = 256
_STEADY: Final = 0.95
"""Of the rate found: one that was borne once may not be each time."""


@dataclass(frozen=True)
class Scale:
    """Sizes of the model, and how much is measured."""

    model: ModelConfig
    steps: int
    items: int
    batches: tuple[int, ...]
    seconds: float
    warm_up_s: float
    repeats: int


def _model(layers: int, heads: int, width: int, history: int) -> ModelConfig:
    return ModelConfig(layers=layers, heads=heads, width=width, history=history, stride=1, dropout=0)


FULL: Final = Scale(_model(12, 12, 768, 256), 6, 1_000_000, (1, 2, 4, 8, 16, 24, 32, 48, 64), 6.0, 1.0, 5)
QUICK: Final = Scale(_model(2, 2, 32, 16), 3, 1_000, (1, 4, 8), 0.5, 0.1, 2)


class Worker:
    """A large model with a captured batch of each size."""

    def __init__(self, device: torch.device, scale: Scale) -> None:
        self.large = LargeModel(scale.model, scale.items, device)
        events, graph = scale.model.history, device.type == "cuda"
        self._batches = [Batch(self.large, size, events, scale.steps, graph) for size in scale.batches]
        self._plain = Batch(self.large, 1, events, scale.steps, graph=False)
        rng = np.random.default_rng(0)
        self._users = [random_request(rng, scale.items, events, self.large.vocabulary) for _ in range(_USERS)]

    def together(self, numbers: np.ndarray) -> None:
        """Requests of these numbers in one batch, the smallest that holds them."""
        batch = next(batch for batch in self._batches if batch.size >= len(numbers))
        batch([self._users[number % _USERS] for number in numbers])

    def alone_per_s(self, seconds: float) -> float:
        """Requests a second one after another, without a graph."""
        for number in range(3):
            self._plain([self._users[number]])
        began, done = time.perf_counter(), 0
        while time.perf_counter() - began < seconds:
            self._plain([self._users[done % _USERS]])
            done += 1
        return done / (time.perf_counter() - began)


def measure(device: torch.device, scale: Scale, folder: Path, quick: bool, progress: Progress) -> Result:
    """P9.

    Args:
        device: a GPU; on a CPU the same path runs, without graphs.
        folder: where results are written.

    Raises:
        BenchmarkError: not even the lowest rate is answered in time.
    """
    began = time.monotonic()
    progress("P9 model and graphs", 0, 0)
    worker = Worker(device, scale)
    progress("P9 model and graphs", 1, 1)
    tried: dict[float, Served] = {}

    def attempt(rate: float) -> bool:
        tried[rate] = _served(worker, rate, scale, len(tried))
        return _in_time(tried[rate])

    progress("P9 rates", 0, 0)
    rate = _STEADY * search(attempt, 1.05, _FIRST, _MOST)
    progress("P9 rates", 1, 1)
    rounds: list[Served] = []
    bare: list[float] = []
    for at in range(scale.repeats):
        progress("P9 repeats", at, scale.repeats)
        bare.append(worker.alone_per_s(scale.seconds / 4))
        rounds.append(_served(worker, rate, scale, 100 + at))
    progress("P9 repeats", 1, 1)
    value, spread = summary([served.per_s for served in rounds])
    baseline, bare_spread = summary(bare)
    p90 = summary([_percentile_ms(served, 90) for served in rounds])[0]
    model, name = scale.model, torch.cuda.get_device_name(device) if device.type == "cuda" else "no GPU"
    curve = {at: served for at, served in sorted(tried.items()) if not served.overrun}
    return Result(
        id="P9",
        name=f"requests on a GPU with p90 <= {P90_MS:g} ms",
        value=value,
        unit="requests/s",
        baseline_name="one request at a time, without graphs",
        baseline=baseline,
        ratio=rounded(value / baseline),
        goal=f">= {GOAL_PER_S:g} requests/s at p90 <= {P90_MS:g} ms",
        met=value >= GOAL_PER_S and p90 <= P90_MS and not quick,
        spread={"value": spread, "baseline": bare_spread},
        samples={"value": [rounded(served.per_s) for served in rounds], "baseline": [rounded(r) for r in bare]},
        details={
            "asked_per_s": rate,
            "p50_ms": summary([_percentile_ms(served, 50) for served in rounds])[0],
            "p90_ms": p90,
            "p99_ms": summary([_percentile_ms(served, 99) for served in rounds])[0],
            "requests_of_a_batch": rounded(sum(len(s.latencies_s) for s in rounds) / sum(s.batches for s in rounds)),
        },
        curve=Curve(
            x_name="requests/s",
            y_name="ms until the embeddings are there",
            x=list(curve),
            y={f"p{percent}": [_percentile_ms(s, percent) for s in curve.values()] for percent in (50, 90)},
        ),
        protocol=(
            f"{name}; {model.layers} layers, {model.heads} heads, width {model.width}, random weights, matrices in "
            f"bfloat16, {scale.items:,} items. Each request encodes a history of {model.history} events anew (nothing "
            f"is kept of a user) and makes {scale.steps} steps of {worker.large.embeddings} embeddings "
            f"(outcomes x offsets) on the cache; the clock runs from its arrival to its embeddings in the computer's "
            "memory, and the search of the index is not in it. Requests arrive independently of each other (Poisson); "
            f"one worker takes what waits, at most {max(scale.batches)} at once, in the smallest of the sizes "
            f"{', '.join(map(str, scale.batches))}, each captured as a CUDA graph. The rate is doubled from "
            f"{_FIRST:g} requests/s and then narrowed down to within 5%; {scale.seconds:g} s a round after "
            f"{scale.warm_up_s:g} s of warm-up, then {scale.repeats} rounds at {_STEADY:.0%} of the rate found, in "
            "turn with the baseline."
        ),
        seconds=round(time.monotonic() - began, 1),
        quick=quick,
        machine=machine(folder),
        commit=commit(),
    )


def _served(worker: Worker, rate: float, scale: Scale, seed: int) -> Served:
    moments = poisson(rate, scale.warm_up_s + scale.seconds, seed)
    return serve(moments, worker.together, max(scale.batches), scale.warm_up_s)


def _in_time(served: Served) -> bool:
    return not served.overrun and _percentile_ms(served, 90) <= P90_MS


def _percentile_ms(served: Served, percent: float) -> float:
    return rounded(1e3 * percentile(served.latencies_s.tolist(), percent))
