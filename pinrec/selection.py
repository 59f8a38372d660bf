"""Fitting a model under comparison, selected on validation, with a checkpoint after every epoch."""

import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from pinrec.baselines.contender import Contender
from pinrec.measures import measure
from pinrec.protocols import Cases

State = dict[str, Tensor]
_RECORD: Final = "record"


@dataclass(frozen=True)
class Point:
    """One epoch of a learning curve.

    Attributes:
        epoch: epochs done.
        loss: mean loss of this epoch, None where nothing was fitted or it is not finite.
        seconds: since the start, evaluation included, the time between an interruption and its resumption left out.
        valid: the figures on validation, None where this epoch was not evaluated.
    """

    epoch: int
    loss: float | None
    seconds: float
    valid: dict[str, float] | None = None


@dataclass
class Fitted:
    """What `fit_selected` found: the curve, and the epoch whose weights the contender now has."""

    curve: list[Point] = field(default_factory=list)
    best_epoch: int = -1

    @property
    def seconds(self) -> float:
        """How long it took, interruptions left out."""
        return self.curve[-1].seconds if self.curve else 0.0

    @property
    def valid(self) -> dict[str, float]:
        """The figures of the best epoch on validation."""
        return next((p.valid for p in self.curve if p.epoch == self.best_epoch and p.valid), {})

    def value(self, metric: str) -> float:
        """The best epoch's figure; minus infinity before any was evaluated."""
        return self.valid.get(metric, -math.inf)


def fit_selected(
    contender: Contender,
    valid: Cases,
    *,
    metric: str = "ndcg@10",
    every: int = 1,
    patience: int | None = None,
    embeddings: int = 1,
    checkpoint: Path | None = None,
    progress: Callable[[Fitted], None] | None = None,
) -> Fitted:
    """Fit to the end, or until patience is lost, and leave the contender with the weights that validated best.

    A run that is killed at any moment and started again with the same arguments goes on from its last whole epoch
    and ends exactly where an uncut one would.

    Args:
        contender: made anew, with the same split, configuration and seed as the run that was cut off.
        valid: the validation cases.
        metric: figure of `measure` to select by, the higher the better; the earliest epoch wins a tie.
        every: epochs between two evaluations; the last epoch is always evaluated.
        patience: stop after so many evaluations without a better one; None fits all epochs.
        embeddings: as in `measure`.
        checkpoint: file of the last and the best state, replaced after every epoch; None keeps none.
        progress: called after every epoch, once it is safe in the checkpoint.

    Raises:
        ValueError: there is no such metric, or it is NaN for all users.
    """
    fitted, best = Fitted(), State()
    if checkpoint is not None and checkpoint.exists():
        fitted, best = _resume(contender, checkpoint)
    resumed_at = time.perf_counter() - fitted.seconds
    while not _done(contender, fitted, patience):
        loss = contender.fit_epoch() if contender.epoch < contender.epochs else math.nan
        figures = None
        if contender.epoch % every == 0 or contender.epoch >= contender.epochs:
            figures = measure(contender, valid, embeddings).mean()
            if math.isnan(figures.get(metric, math.nan)):
                raise ValueError(f"metric: {metric} is not measured; there are {', '.join(figures)}")
        better = figures is not None and figures[metric] > fitted.value(metric)
        seconds = time.perf_counter() - resumed_at
        fitted.curve.append(Point(contender.epoch, loss if math.isfinite(loss) else None, seconds, figures))
        state = contender.state()
        if better:
            fitted.best_epoch, best = contender.epoch, state
        if checkpoint is not None:
            _save(checkpoint, state, best, fitted)
        if progress is not None:
            progress(fitted)
    contender.load_state(best)
    return fitted


def _done(contender: Contender, fitted: Fitted, patience: int | None) -> bool:
    if not fitted.curve:
        return False
    since = sum(p.valid is not None and p.epoch > fitted.best_epoch for p in fitted.curve)
    return contender.epoch >= contender.epochs or (patience is not None and since >= patience)


def _save(path: Path, last: State, best: State, fitted: Fitted) -> None:
    """Write aside and rename: whoever is killed in between leaves the checkpoint of the epoch before."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(path.name + ".tmp")
    # Clones, as safetensors refuses tensors that share memory.
    tensors = {f"last:{name}": tensor.detach().clone() for name, tensor in last.items()}
    tensors |= {f"best:{name}": tensor.detach().clone() for name, tensor in best.items()}
    record = json.dumps({"curve": [asdict(point) for point in fitted.curve], "best_epoch": fitted.best_epoch})
    save_file(tensors, aside, {_RECORD: record})
    with aside.open("rb+") as file:
        os.fsync(file.fileno())
    aside.replace(path)


def _resume(contender: Contender, path: Path) -> tuple[Fitted, State]:
    """Give the contender its last state; the curve so far and the best state."""
    states: dict[str, State] = {"last": {}, "best": {}}
    with safe_open(path, framework="pt") as file:
        record = json.loads(file.metadata()[_RECORD])
        for key in file.keys():  # noqa: SIM118 - it is no mapping
            of, _, name = key.partition(":")
            states[of][name] = file.get_tensor(key)
    contender.load_state(states["last"])
    return Fitted([Point(**point) for point in record["curve"]], record["best_epoch"]), states["best"]
