"""One run: a model on one split of one log, fitted, selected on validation, and tested once."""

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal

import torch

from benchmarks.quality.equal import embeddings_on, generating
from benchmarks.quality.models import MODELS, Entry, Selection, catalogue_config, plain
from benchmarks.quality.record import Epoch, Run, means, overall, packed_users, run_name
from benchmarks.result import ROOT, commit, machine
from pinrec.baselines.contender import Contender
from pinrec.measures import measure
from pinrec.protocols import Split, UserLog, disjoint, leave_one_out
from pinrec.selection import Fitted, Point, fit_selected
from streaming.item_files import items_beside
from streaming.log_columns import log_in, read_log_columns

CHECKPOINTS: Final = ROOT / ".pinrec" / "quality"
_BLOCK: Final = 1 << 20


@dataclass(frozen=True)
class Wanted:
    """Everything that decides a run.

    Attributes:
        data: folder of the log; its name is the data set's.
        fold, folds: under `disjoint`.
        all_engage: every action is a target, not only those declared engaging.
        epochs: in place of the config's, for a trial.
        checkpoints: folder of the checkpoints; None: `CHECKPOINTS`.
    """

    data: Path
    protocol: Literal["loo", "disjoint"]
    model: str
    seed: int = 0
    fold: int = 0
    folds: int = 5
    all_engage: bool = False
    epochs: int | None = None
    checkpoints: Path | None = None

    @classmethod
    def again(cls, run: Run, data: Path) -> "Wanted":
        """What a recorded run wanted."""
        how = run.config["protocol"]
        return cls(data, run.protocol, run.model, run.seed, run.fold or 0, how.get("folds", 5), how["all_engage"])

    @property
    def dataset(self) -> str:
        """Name of the data set."""
        return self.data.resolve().name

    @property
    def name(self) -> str:
        """Name of its JSON, without the ending."""
        return run_name(self.dataset, self.protocol, self.model, self.seed, self._fold)

    @property
    def _fold(self) -> int | None:
        return self.fold if self.protocol == "disjoint" else None


class Prepared:
    """A run with its data read and its model made. `fit` goes on from the checkpoint, so a finished one only loads."""

    def __init__(self, wanted: Wanted, models: dict[str, Entry] | None = None, recorded: Run | None = None) -> None:
        """Read the log and split it.

        Args:
            models: in place of `MODELS`.
            recorded: this run's JSON, if its model is needed once more: its settings hold, whatever they are now,
                and `fit` loads its checkpoint, or trains the model again where that is gone.

        Raises:
            ValueError: the log cannot be read or split, or the settings are wrong; a sentence with the remedy.
        """
        self.wanted, self.commit, self._recorded = wanted, commit(), recorded
        entry = (models or MODELS)[wanted.model]
        self.config: Any = entry.config_for(wanted.dataset, wanted.protocol, wanted.epochs)
        if recorded is not None:
            if self.data_sha256 != recorded.data_sha256:
                raise ValueError(f"data: {wanted.data} is not the log of {recorded.name}; take that run again")
            self.config = entry.config_of(recorded.config["model"])
        found = read_log_columns(
            wanted.data,
            config=catalogue_config(self.config),
            all_engage=wanted.all_engage,
            beginnings=getattr(self.config, "beginnings", None),
        )
        log = UserLog.of(found.events, found.catalogue, found.vocabulary)
        self.split: Split = leave_one_out(log) if wanted.protocol == "loo" else disjoint(log, wanted.fold, wanted.folds)
        self.selection: Selection
        if recorded is not None:
            self.selection = Selection.model_validate(recorded.config["selection"])
        elif wanted.protocol == "disjoint":
            embeddings = embeddings_on(wanted.dataset, self.split)
            self.selection = entry.selection_for(wanted.dataset, wanted.protocol, embeddings)
            self.config = generating(self.config, wanted.dataset, self.split, self.selection.embeddings)
        else:
            self.selection = entry.selection_for(wanted.dataset, wanted.protocol)
        self.contender: Contender = entry.make(self.split, self.config, wanted.seed)

    @cached_property
    def data_sha256(self) -> str:
        """Of the log, and of the items beside it, one after the other."""
        log = log_in(self.wanted.data)
        digest = hashlib.sha256()
        for path in filter(None, (log, items_beside(log))):
            with path.open("rb") as file:
                while block := file.read(_BLOCK):
                    digest.update(block)
        return digest.hexdigest()

    @property
    def described(self) -> dict[str, Any]:
        """All settings, as JSON holds them."""
        if self._recorded is not None:
            return self._recorded.config
        wanted = self.wanted
        protocol: dict[str, Any] = {"all_engage": wanted.all_engage}
        if wanted.protocol == "disjoint":
            protocol["folds"] = wanted.folds
        return {"model": plain(self.config), "selection": self.selection.model_dump(), "protocol": protocol}

    @property
    def checkpoint(self) -> Path:
        """Where it is kept. Other settings or data give another name: no run goes on from what is not its own."""
        identity = json.dumps([self.wanted.name, self.described, self.data_sha256], sort_keys=True)
        folder = self.wanted.checkpoints or CHECKPOINTS
        return folder / f"{self.wanted.name}-{hashlib.sha256(identity.encode()).hexdigest()[:8]}.safetensors"

    def fit(self, progress: Callable[[Fitted], None] | None = None) -> Fitted:
        """Fit, or go on fitting; the contender is left with the weights that validated best."""
        return fit_selected(
            self.contender,
            self.split.valid,
            **self.selection.model_dump(),
            checkpoint=self.checkpoint,
            progress=progress,
        )

    def borrow(self, lender: "Prepared") -> Fitted:
        """Take the selected weights of another run in place of fitting; the figures on validation are this one's own.

        Raises:
            ValueError: the two differ in more than how embeddings are made of the weights.
        """
        mine, theirs = (_of_weights(plain(run.config)) | run.described["protocol"] for run in (self, lender))
        if mine != theirs:
            different = ", ".join(name for name in mine if mine[name] != theirs.get(name))
            raise ValueError(
                f"{lender.wanted.name} has other settings than {self.wanted.name} ({different}); take it again"
            )
        fitted = lender.fit()
        self.contender.load_state(lender.contender.state())
        since = time.perf_counter()
        valid = measure(self.contender, self.split.valid, self.selection.embeddings).mean()
        return Fitted([Point(fitted.best_epoch, None, time.perf_counter() - since, valid)], fitted.best_epoch)

    def test(self, fitted: Fitted) -> Run:
        """Test the selected weights."""
        wanted, cases = self.wanted, self.split.test
        found = measure(self.contender, cases, self.selection.embeddings)
        is_disjoint = wanted.protocol == "disjoint"
        return Run(
            dataset=wanted.dataset,
            protocol=wanted.protocol,
            model=wanted.model,
            seed=wanted.seed,
            fold=wanted.fold if is_disjoint else None,
            test=means(found.mean()),
            valid=means(fitted.valid),
            config=self.described,
            commit=self.commit,
            data_sha256=self.data_sha256,
            seconds=round(fitted.seconds, 1),
            curve=[
                Epoch(
                    epoch=point.epoch,
                    loss=None if point.loss is None else float(f"{point.loss:.5g}"),
                    seconds=round(point.seconds, 1),
                    valid=None if point.valid is None else means(overall(point.valid)),
                )
                for point in fitted.curve
            ],
            machine=machine(ROOT),
            users=packed_users(found, cases) if is_disjoint else None,
        )


def _of_weights(config: dict[str, Any]) -> dict[str, Any]:
    """What weights, and what a history is to them, depend on: all but the offsets asked for and the budget.

    The mode stays: a model is trained for it.
    """
    model = {f"model.{name}": value for name, value in config["model"].items() if name != "offsets_s"}
    rest = {name: value for name, value in config.items() if name not in ("model", "generation")}
    return rest | model | {"generation.mode": config["generation"]["mode"]}


def use_device(name: str) -> None:
    """Make it torch's default, on which models are made and trained; `auto` is the GPU where there is one.

    Raises:
        ValueError: torch knows no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.set_default_device(name)
        torch.zeros(1)
    except (RuntimeError, AssertionError) as error:
        torch.set_default_device("cpu")
        raise ValueError(f"device: {name!r} cannot be used here; choose cpu, cuda or auto ({error})") from None
