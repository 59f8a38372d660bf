"""PinRec's three modes beside two baselines, on one split of one log, in minutes: what `pinrec evaluate` shows."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Final, Literal

import numpy as np
from pydantic import Field

from pinrec.baselines.contender import Contender
from pinrec.baselines.popular import Popular, PopularConfig
from pinrec.baselines.sasrec import SASRec, SASRecConfig
from pinrec.budget import aims_of_steps
from pinrec.config import Frozen, GenerationConfig, Mode, ModelConfig, TrainingConfig, Vocabulary
from pinrec.contender import PinRec, PinRecRecipe
from pinrec.dataset import EventColumns
from pinrec.evaluation import outcome_shares
from pinrec.measures import Difference, K, PerUser, measure, paired_bootstrap
from pinrec.protocols import Cases, ProtocolError, Split
from pinrec.selection import Fitted, fit_selected

ProtocolName = Literal["disjoint", "loo"]
BASELINES: Final = ("Popularity", "SASRec")
PINREC: Final[dict[str, Mode]] = {
    "PinRec-UC": "unconditioned", "PinRec-OC": "outcome", "PinRec-MT,OC": "multi_token"
}  # fmt: skip
SERVED: Final = "PinRec-MT,OC"  # what is concluded is about the mode that serves by default
EXACT_ITEMS: Final = 20_000  # larger catalogues are sampled from in training
MOST_EPOCHS: Final = 100  # of a small log, whose epochs have few steps
AIMS: Final = 3  # most outcomes aimed at; every one has as many embeddings, however rare it is
AIM_SHARE: Final = 0.1  # of the engagements in training, that an outcome aimed at must have
EMBEDDINGS: Final = 12  # at least so many are generated for a user under `disjoint`
LARGE: Final = 0.1  # a list that holds this share of the catalogue finds too much to tell models apart
FEW: Final = 100  # users, below which an interval is rough


class ComparisonConfig(Frozen):
    """How much is done. The sizes of PinRec are those that serve."""

    model: ModelConfig = ModelConfig()
    training: TrainingConfig = TrainingConfig()
    generation: GenerationConfig = GenerationConfig()
    epochs: int | None = Field(None, ge=1, description="passes over the training events; None = by the steps")
    pinrec_steps: int = Field(800, ge=1, description="about so many steps of the optimiser, in whole epochs")
    sasrec_steps: int = Field(3_000, ge=1, description="its steps are smaller and faster")
    validations: int = Field(20, ge=1, description="most looks at the validation users in a training")
    patience: int = Field(4, ge=1, description="looks without a better figure that end a training")
    max_users: int = Field(2_000, ge=2, description="a random sample of so many is tested, of half as many validated")
    seed: int = Field(0, ge=0, description="of the models; the split and the sample do not depend on it")


@dataclass(frozen=True)
class Progress:
    """Where a comparison stands.

    Attributes:
        epoch, epochs: done, and the most that there will be.
        metric, figure: what the last epoch (of a tested model: the best) reached on validation; None where it was
            not looked at.
        left_s: what this model takes at most until it is tested; None before the first epoch.
        tested: this model is done.
    """

    model: str
    epoch: int
    epochs: int
    metric: str
    figure: float | None = None
    left_s: float | None = None
    tested: bool = False


@dataclass(frozen=True)
class Compared:
    """What came of it.

    Attributes:
        metric: the figure that epochs were selected by and models are compared by.
        embeddings: of each user, for every model; 1 where only one list is looked at.
        fitted, found: by the name of the model.
    """

    metric: str
    embeddings: int
    fitted: dict[str, Fitted]
    found: dict[str, PerUser]

    @property
    def columns(self) -> tuple[str, ...]:
        """The figures that say something under the protocol; with one target a recall is the hit rate."""
        lists = (f"hr@{K}", f"ndcg@{K}")
        if self.embeddings == 1:
            return lists
        return (*lists, f"recall@{K}", f"equal@{self.embeddings * K}", f"unordered@{K}", "diversity")

    @property
    def best_baseline(self) -> str:
        """By the test itself: the harder one to beat."""
        return max(BASELINES, key=lambda name: self.found[name].mean()[self.metric])

    def difference(self, model: str) -> Difference:
        """The model less the best baseline, user by user."""
        baseline, found = self.found[self.best_baseline], self.found[model]
        return paired_bootstrap(baseline.figures[self.metric], found.figures[self.metric])

    def words(self, model: str) -> str:
        """The difference in words: `+12.3 %, 95 % interval +8.0 % to +16.5 %`, of the baseline's mean."""
        found = self.difference(model)
        none = "" if found.decided else "no difference shown: "
        if not found.mean_a:
            return f"{none}{found.difference:+.4f}, 95 % interval {found.low:+.4f} to {found.high:+.4f}"
        low, high = found.low / found.mean_a, found.high / found.mean_a
        return f"{none}{_percent(found.relative)}, 95 % interval {_percent(low)} to {_percent(high)}"

    @property
    def conclusion(self) -> str:
        """One sentence that claims no more than the interval does, and what it leaves open."""
        found, users = self.difference(SERVED), len(self.found[SERVED].user)
        verb = ("finds more than" if found.low > 0 else "finds less than") if found.decided else "against"
        means = f"{self.metric} {found.mean_b:.4f} against {found.mean_a:.4f}, {users:,} users"
        text = f"{SERVED} {verb} {self.best_baseline}, the best baseline here: {self.words(SERVED)} ({means})."
        rough = " With so few users the interval itself is rough." if users < FEW else ""
        return f"{text}{rough} The interval knows the chance in the users, not that in the training or the split."


def _percent(share: float) -> str:
    return f"{100 * share:+.1f} %"


def compare(
    split: Split,
    protocol: ProtocolName,
    config: ComparisonConfig,
    progress: Callable[[Progress], None] = lambda _: None,
) -> Compared:
    """Fit the five models one after the other, select the epoch of each on validation, and test it once.

    Under `disjoint` every model retrieves with as many embeddings a user, E, and they are selected and compared by
    equal@n, by as many distinct items from each (n = 10 E); where that is much of the catalogue, by recall@10. Under
    `loo` all make one list of ten, compared by ndcg@10.

    Raises:
        ProtocolError: nothing is left to train on.
    """
    split = replace(
        split, valid=_sample(split.valid, config.max_users // 2), test=_sample(split.test, config.max_users)
    )
    makers, embeddings = _contenders(split, protocol, config)
    metric = _metric(embeddings, len(split.log.catalogue))
    fitted: dict[str, Fitted] = {}
    found: dict[str, PerUser] = {}
    for name, make in makers.items():
        contender = make()
        progress(Progress(name, 0, contender.epochs, metric))
        fitted[name] = fit_selected(
            contender,
            split.valid,
            metric=metric,
            every=max(1, contender.epochs // config.validations),
            patience=config.patience,
            embeddings=embeddings,
            progress=partial(_tell, progress, name, contender.epochs, metric),
        )
        found[name] = measure(contender, split.test, embeddings)
        done = fitted[name].curve[-1].epoch
        progress(Progress(name, done, contender.epochs, metric, fitted[name].value(metric), 0.0, True))
    return Compared(metric, embeddings, fitted, found)


def _metric(embeddings: int, items: int) -> str:
    if embeddings == 1:
        return f"ndcg@{K}"
    return f"equal@{embeddings * K}" if embeddings * K <= LARGE * items else f"recall@{K}"


def _tell(progress: Callable[[Progress], None], model: str, epochs: int, metric: str, so_far: Fitted) -> None:
    point = so_far.curve[-1]
    left_s = point.seconds / max(1, point.epoch) * (epochs - point.epoch)
    progress(Progress(model, point.epoch, epochs, metric, point.valid[metric] if point.valid else None, left_s))


def _sample(cases: Cases, most: int) -> Cases:
    if len(cases) <= most:
        return cases
    return cases.at(np.sort(np.random.default_rng(0).choice(len(cases), max(1, most), replace=False)))


def _contenders(
    split: Split, protocol: ProtocolName, config: ComparisonConfig
) -> tuple[dict[str, Callable[[], Contender]], int]:
    """How each model is made, and the number of embeddings that each generates for a user."""
    users = len(np.unique(split.training_events.user))
    exact = len(split.log.catalogue) <= EXACT_ITEMS
    sasrec = SASRecConfig(loss="softmax" if exact else "bce", width=config.model.width, dropout=0.3, max_length=100)
    sasrec = sasrec.model_copy(update={"epochs": _epochs(config, config.sasrec_steps, users / sasrec.batch_users)})
    training = config.training
    epochs = _epochs(config, config.pinrec_steps, split.train.sum() / (training.batch_users * training.window))
    makers: dict[str, Callable[[], Contender]] = {
        "Popularity": partial(Popular, split, PopularConfig()),
        "SASRec": partial(SASRec, split, sasrec, config.seed),
    }
    aims, offsets = aims_of(split.training_events, split.log.vocabulary), len(config.model.offsets_s)
    steps = -(-EMBEDDINGS // (len(aims) * offsets)) if protocol == "disjoint" else 1
    embeddings = steps * len(aims) * offsets if protocol == "disjoint" else 1
    for name, mode in PINREC.items():
        # With so many steps, outcomes in turn are one a step.
        update = {"mode": mode, "default_outcomes": aims, "steps": embeddings}
        generation = config.generation.model_copy(update=update)
        each = embeddings // embeddings_a_step(generation, offsets) if protocol == "disjoint" else 1
        generation = generation.model_copy(update={"steps": each})
        recipe = PinRecRecipe(config.model, training, generation, epochs)
        makers[name] = partial(PinRec, split, recipe, config.seed)
    return makers, embeddings


def _epochs(config: ComparisonConfig, steps: int, steps_an_epoch: float) -> int:
    return config.epochs or min(MOST_EPOCHS, max(1, round(steps / max(1.0, steps_an_epoch))))


def embeddings_a_step(generation: GenerationConfig, offsets: int) -> int:
    """How many embeddings of a user each of its decode steps emits."""
    aimed_at = len(generation.default_outcomes or {}) or 1
    outcomes = int(aims_of_steps(aimed_at, generation.steps, generation.in_turn).shape[1])
    return {"unconditioned": 1, "outcome": outcomes, "multi_token": outcomes * offsets}[generation.mode]


def aims_of(events: EventColumns, vocabulary: Vocabulary) -> dict[str, float]:
    """The budget: the outcomes that are frequent in these events, the most frequent first.

    Raises:
        ProtocolError: there is no engagement.
    """
    shares = outcome_shares(events, vocabulary)
    if not shares:
        raise ProtocolError(
            "action: no engagement is left to train on; bring a longer log, or declare which actions are engaging"
        )
    ordered = sorted(shares, key=lambda name: -shares[name])
    return {name: shares[name] for name in ordered[:AIMS] if shares[name] >= AIM_SHARE or name == ordered[0]}
