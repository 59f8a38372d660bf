"""Every run that docs/quality.md tells of, training speed aside, in the order they are taken: most telling first."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.quality.budgets_record import FOLDER as BUDGETS_FOLDER
from benchmarks.quality.budgets_record import MODEL as BUDGETS
from benchmarks.quality.cold_record import FOLDER as COLD_FOLDER
from benchmarks.quality.kept_record import FOLDER as KEPT_FOLDER
from benchmarks.quality.models import MODELS
from benchmarks.quality.ranking_record import FOLDER as RANKING_FOLDER
from benchmarks.quality.ranking_record import MODEL as RANKING
from benchmarks.quality.record import run_name

FOLDS: Final = {"kuairand_pure": 5, "ml1m": 10}
"""Into how many the users are divided; ML-1M's ten with one tested are an 80/10/10 split."""
BASELINES: Final = ("popular", "popular_recent", "sasrec", "two_tower", "sasrec_bce", "pinnerformer", "hstu", "tiger")
METHOD: Final = ("pinrec", "pinrec_oc", "pinrec_uc")
ABLATIONS: Final = (
    "no_multi_hash", "no_content", "ids_alone", "no_logq", "in_batch_only", "feed_relaxation", "impression_negatives",
    "no_time", "e1", "e1_in_turn", "e4", "e16",
)  # fmt: skip
ABLATED_FOLDS: Final = (0, 1)
BY_TIME: Final = "by_time"
TOWN: Final = "town"
"""The simulated one: it takes no folder of data."""
_OF_THEIR_OWN: Final = {
    BUDGETS: ("budgets", BUDGETS_FOLDER.name),
    RANKING: ("ranking", RANKING_FOLDER.name),
    "cold": ("cold", COLD_FOLDER.name),
    "kept": ("kept", KEPT_FOLDER.name),
}
"""Module and folder of what is measured beside the table of models."""


@dataclass(frozen=True)
class Planned:
    """One run, by what tells it from every other."""

    dataset: str
    protocol: str
    model: str
    seed: int = 0
    fold: int | None = None

    @property
    def name(self) -> str:
        """Name of its JSON, without the ending."""
        if self.protocol == BY_TIME:
            return f"{self.dataset}-{self.model}-seed{self.seed}"
        return run_name(self.dataset, self.protocol, self.model, self.seed, self.fold)

    @property
    def file(self) -> Path:
        """Where its JSON lies in the folder of results."""
        _, folder = _OF_THEIR_OWN.get(self.model, ("", ""))
        return Path(folder, f"{self.name}.json")

    @property
    def module(self) -> str:
        """The command that takes it."""
        module, _ = _OF_THEIR_OWN.get(self.model, ("", ""))
        return "benchmarks.quality" + (f".{module}" if module else "")

    def arguments(self, data: Path) -> list[str]:
        """Those of its command; that of budgets finds the rest in the run whose model it takes."""
        if self.protocol == BY_TIME:
            of = ["--town"] if self.dataset == TOWN else ["--data", str(data / self.dataset)]
            return [*of, "--seed", str(self.seed)]
        if self.model in _OF_THEIR_OWN:
            return ["--data", str(data / self.dataset), "--seed", str(self.seed), "--fold", str(self.fold)]
        arguments = [
            "--data", str(data / self.dataset), "--protocol", self.protocol, "--model", self.model,
            "--seed", str(self.seed),
        ]  # fmt: skip
        if self.fold is not None:
            arguments += ["--fold", str(self.fold), "--folds", str(FOLDS[self.dataset])]
            # A rating of any height is an outcome there.
            arguments += ["--all-engage"] if self.dataset == "ml1m" else []
        return arguments


def plan() -> list[Planned]:
    """All runs, the most informative first, each once. What has no entry in `models` yet is left out."""
    quick = [model for model in BASELINES if model != "tiger"]
    everything = (
        *_folds(range(5), (*METHOD, *quick)),
        *_folds(range(5), (BUDGETS,)),
        Planned("ml1m", "loo", "pinrec"),
        Planned("amazon_beauty", "loo", "pinrec"),
        *(Planned(data, "loo", model) for model in ("sasrec", "sasrec_bce") for data in ("amazon_beauty", "ml1m")),
        *(Planned("amazon_beauty", "loo", model) for model in ("hstu", "tiger")),
        *_folds(range(5), ("tiger",)),
        *(Planned("ml1m", "disjoint", model, fold=0) for model in (*METHOD, BUDGETS, *BASELINES)),
        *_folds(ABLATED_FOLDS, ABLATIONS),
        *_folds((0,), (RANKING,)),
        *(Planned(data, BY_TIME, "cold") for data in ("kuairand_pure", TOWN)),
        Planned("kuairand_pure", BY_TIME, "kept"),
        *(Planned(data, "loo", "pinrec", seed) for seed in (1, 2) for data in ("ml1m", "amazon_beauty")),
        *(Planned("ml1m", "disjoint", model, seed, 0) for seed in (1, 2) for model in (*METHOD, BUDGETS, *BASELINES)),
    )
    return [planned for planned in dict.fromkeys(everything) if planned.model in (*MODELS, *_OF_THEIR_OWN)]


def _folds(folds: range | tuple[int, ...], models: tuple[str, ...]) -> Iterator[Planned]:
    for fold in folds:
        for model in models:
            yield Planned("kuairand_pure", "disjoint", model, fold=fold)
