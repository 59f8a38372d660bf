"""`pinrec evaluate`: what the model finds on a user's own log, beside what simpler models find."""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.table import Table

from pinrec.comparison import PINREC, Compared, ComparisonConfig, Progress, ProtocolName, compare
from pinrec.config import Action, ModelConfig, Vocabulary
from pinrec.measures import K
from pinrec.protocols import ProtocolError, Split, UserLog, disjoint, leave_one_out
from serving.terminal import Steps
from streaming.log_columns import read_log_columns
from streaming.log_files import LogError


@dataclass(frozen=True)
class Question:
    """What is measured on.

    Attributes:
        path: the log, or a folder that holds one.
        columns: the file's name -> ours.
        vocabulary: declared; None = taken from the log.
        engaging: the actions that count as engagement; none named = as the vocabulary has them.
        fold, folds: under `disjoint`.
    """

    path: Path
    columns: Mapping[str, str]
    vocabulary: Vocabulary | None = None
    engaging: Sequence[str] = ()
    protocol: ProtocolName = "disjoint"
    fold: int = 0
    folds: int = 5

    def split(self, model: ModelConfig) -> Split:
        """Read the log and split it.

        Raises:
            LogError, ProtocolError: a sentence with the remedy.
        """
        try:
            found = read_log_columns(self.path, self.columns, model, self.vocabulary)
            vocabulary = self._with_engaging(found.vocabulary)
            log = UserLog.of(found.events, found.catalogue, vocabulary)
            return leave_one_out(log) if self.protocol == "loo" else disjoint(log, self.fold, self.folds)
        except (LogError, ProtocolError):
            raise
        except ValueError as error:
            undeclared = "; declare it in args.vocabulary of the deploy file" if "is not declared" in str(error) else ""
            raise ProtocolError(f"{error}{undeclared}") from error

    def _with_engaging(self, vocabulary: Vocabulary) -> Vocabulary:
        for name in self.engaging:
            if name not in vocabulary.action_index:
                known = ", ".join(vocabulary.action_index)
                raise ProtocolError(f"--engaging {name}: the log has no such action; it has {known}")
        if not self.engaging:
            return vocabulary
        actions = tuple(Action(name=a.name, engaging=a.name in self.engaging) for a in vocabulary.actions)
        return Vocabulary(actions=actions, surfaces=vocabulary.surfaces)


@dataclass(frozen=True)
class Answer:
    """What was measured, on which split."""

    question: Question
    split: Split
    compared: Compared
    seed: int

    def table(self) -> Table:
        """A row for each model."""
        question, compared = self.question, self.compared
        log, users = self.split.log, next(iter(compared.found.values()))
        table = Table(
            title=f"{question.path}: {len(log):,} events, {len(log.catalogue):,} items; {len(users.user):,} users "
            f"tested, {int(users.targets.sum()):,} items to be found ({self._protocol})",
            title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True,
        )  # fmt: skip
        table.add_column("model")
        for name in compared.columns:
            table.add_column(name, justify="right")
        for model, found in compared.found.items():
            means = found.mean()
            table.add_row(model, *(f"{means[name]:.4f}" for name in compared.columns))
        return table

    @property
    def legend(self) -> str:
        """What the columns are."""
        compared, n = self.compared, self.compared.embeddings * K
        if compared.embeddings == 1:
            return "Each list has ten items; the one to be found is the last that the user engaged with."
        return (
            f"equal@{n}: share of what the user engages with next among {n} distinct items, as many from every model. "
            f"unordered@{K} and diversity: of {compared.embeddings} embeddings with their own {K} each, which overlap; "
            f"a baseline's are cut from one list. The others: of one list of {K}. Compared by {compared.metric}."
        )

    @property
    def differences(self) -> list[str]:
        """A line for each mode of PinRec."""
        compared = self.compared
        return [
            f"{model} against {compared.best_baseline}, {compared.metric}: {compared.words(model)}" for model in PINREC
        ]

    @property
    def _protocol(self) -> str:
        question = self.question
        return "leave one out" if question.protocol == "loo" else f"fold {question.fold} of {question.folds}"

    def json(self) -> dict[str, Any]:
        """All of it."""
        compared, log = self.compared, self.split.log
        models = {}
        for name, fitted in compared.fitted.items():
            models[name] = {
                "test": _finite(compared.found[name].mean()),
                "valid": _finite(fitted.valid),
                "epoch": fitted.best_epoch,
                "epochs": fitted.curve[-1].epoch,
                "seconds": round(fitted.seconds, 1),
            }
        differences = {}
        for name in PINREC:
            found = compared.difference(name)
            differences[name] = {
                "difference": found.difference, "low": found.low, "high": found.high, "decided": found.decided
            }  # fmt: skip
        question = self.question
        return {
            "log": str(question.path),
            "events": len(log),
            "items": len(log.catalogue),
            "protocol": question.protocol,
            **({} if question.protocol == "loo" else {"fold": question.fold, "folds": question.folds}),
            "seed": self.seed,
            "metric": compared.metric,
            "embeddings": compared.embeddings,
            "models": models,
            "best_baseline": compared.best_baseline,
            "differences": differences,
            "conclusion": compared.conclusion,
        }


def evaluate(question: Question, config: ComparisonConfig, steps: Steps) -> Answer:
    """Read, split, fit, select, test.

    Raises:
        LogError, ProtocolError: a sentence with the remedy.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(len(os.sched_getaffinity(0)))
    try:
        steps("the log", 0, 0)
        split = question.split(config.model)
        steps("the log", 1, 1)
        compared = compare(split, question.protocol, config, lambda now: _show(now, steps))
    finally:
        steps.pause()
    return Answer(question, split, compared, config.seed)


def _show(now: Progress, steps: Steps) -> None:
    """A step's bar counts epochs and, as one more, the test."""
    figure = "" if now.figure is None else f", {now.metric} {now.figure:.4f} on validation"
    left = "" if now.left_s is None else f", at most {_duration(now.left_s)} left"
    total = now.epochs + 1
    done = total if now.tested else now.epoch
    steps(f"{now.model}: epoch {now.epoch} of {now.epochs}{figure}{left}", done, total)


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def _finite(figures: Mapping[str, float]) -> dict[str, float]:
    """Without those that no user has."""
    return {name: value for name, value in figures.items() if math.isfinite(value)}
