"""PinRec as a model under comparison: the learner that serving's trainer uses, the generation that serving uses."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Annotated, Final, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from pinrec.baselines.contender import top_unseen
from pinrec.bundle import Bundle
from pinrec.config import GenerationConfig, ModelConfig, TrainingConfig
from pinrec.encoding import Encoder, from_scratch
from pinrec.generation import embed, generate
from pinrec.history import ROW, History
from pinrec.index import ItemIndex
from pinrec.items import Catalogue, Item
from pinrec.measures import Rows
from pinrec.popularity import Popularity
from pinrec.protocols import Cases, Split, UserLog
from pinrec.requests import GenerationRequest
from pinrec.training import Learner, Schedule

_CPU: Final = torch.device("cpu")
MOST: Final = 512  # places of the longest list that a comparison asks for


@dataclass(frozen=True)
class PinRecRecipe:
    """Everything that decides a run but the seed.

    Attributes:
        generation: mode, steps and budget; embeddings of a user = steps x outcomes x offsets.
        epochs: passes over the training events.
        session_gap_s: a log without feed views gets them, split by longer pauses (intra-feed relaxation); 0 = none.
        without: what the model is not told, for ablations: items' content, or times beyond the order of events.
        beginnings: of the items' codes that whoever reads the log makes categories of: lengths by column.
    """

    model: ModelConfig
    training: TrainingConfig
    generation: GenerationConfig
    epochs: int
    session_gap_s: float = 0.0
    without: tuple[Literal["content", "time"], ...] = ()
    beginnings: Mapping[str, tuple[Annotated[int, Field(ge=1)], ...]] = field(default_factory=dict)

    def told(self, split: Split) -> Split:
        """The split as this recipe's model sees it; rows and cases stay the same."""
        events, catalogue = split.log.events, split.log.catalogue
        if self.session_gap_s:
            events = events.with_sessions(self.session_gap_s)
        if "content" in self.without:
            catalogue = Catalogue.of([Item(item_id) for item_id in catalogue.item_ids], self.model)
        if "time" in self.without:
            order = np.arange(len(events)) - split.log.start[events.user]
            events = replace(events, timestamp=order.astype(np.float64))
        return replace(split, log=replace(split.log, events=events, catalogue=catalogue))


class PinRec:
    """A `pinrec.baselines.contender.Contender`."""

    def __init__(self, split: Split, recipe: PinRecRecipe, seed: int) -> None:
        self._split, self._recipe = recipe.told(split), recipe
        training = recipe.training.model_copy(update={"seed": seed})
        self.learner = Learner(recipe.model, split.log.vocabulary, training, recipe.generation.mode)
        self._generation = recipe.generation.model_copy(update={"max_k": MOST})
        self.epochs, self.epoch = recipe.epochs, 0
        self._bundle: Bundle | None = None

    @property
    def steps(self) -> int:
        """Steps of the optimiser in an epoch."""
        training = self._recipe.training
        return max(1, round(int(self._split.train.sum()) / (training.batch_users * training.window)))

    def fit_epoch(self) -> float:
        """See `Contender`."""
        schedule = Schedule(first=self.epoch * self.steps, total=self.epochs * self.steps)
        fitted = self.learner.fit(self._split.training_events, self._split.log.catalogue, self.steps, schedule=schedule)
        self.epoch += 1
        self._bundle = None
        return fitted.loss

    def state(self) -> dict[str, Tensor]:
        """See `Contender`."""
        return self.learner.state() | {"epoch": torch.tensor(self.epoch)}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """See `Contender`."""
        self.learner.load_state({name: value for name, value in state.items() if name != "epoch"})
        self.epoch = int(state["epoch"])
        self._bundle = None

    @property
    def bundle(self) -> Bundle:
        """What serving would be given now, on the CPU, where serving is; with an index that misses nothing."""
        if self._bundle is None:
            log = self._split.log
            with _CPU:
                model = copy.deepcopy(self.learner.served()).to(_CPU)
                made = Bundle.of(model, log.catalogue, self._popularity, mode=self._generation.mode)
                # Models are compared, not indices.
                exact = ItemIndex.build(made.table[:], exact_below=len(log.catalogue) + 1)
                self._bundle = replace(made, index=exact)
        return self._bundle

    @cached_property
    def _popularity(self) -> Popularity:
        return Popularity.of(self._split.training_events, self._split.log.catalogue, self._split.log.vocabulary)

    @cached_property
    def _rows(self) -> np.ndarray:
        return packed_rows(self._split.log)

    def requests(self, cases: Cases, k: int) -> list[GenerationRequest]:
        """What serving would be asked: the history of each case, at the time of its last event."""
        log, requests = self._split.log, []
        for lo, hi in zip(cases.lo.tolist(), cases.hi.tolist(), strict=True):
            asked = log.events.query[lo:hi]
            texts = [log.events.queries[q] if q >= 0 else "" for q in asked] if (asked >= 0).any() else None
            requests.append(
                GenerationRequest(
                    history=History.of_rows(self._rows[lo:hi], texts),
                    k=k,
                    now=float(log.events.timestamp[hi - 1]),
                )
            )
        return requests

    def ranked(self, cases: Cases, k: int, encoder: Encoder = from_scratch) -> Rows:
        """See `Retriever`: the list that serving would answer with."""
        return self.answered(self.requests(cases, min(k, len(self.bundle.catalogue))), k, encoder)

    def answered(self, requests: Sequence[GenerationRequest], k: int, encoder: Encoder = from_scratch) -> Rows:
        """The lists of some requests as catalogue rows [B, k], -1 where there is no more."""
        lists = np.full((len(requests), k), -1, np.int64)
        with _CPU:
            made = generate(self.bundle, requests, self._generation, encoder)
        for row, found in zip(lists, made, strict=True):
            row[: len(found)] = [candidate.row for candidate in found]
        return lists

    def generated(self, cases: Cases, embeddings: int, k: int) -> Rows:
        """See `Retriever`: the k best unseen items of each embedding, before lists are made of them.

        Equal scores go to the lower row, as in every model's lists.
        """
        with _CPU:
            e_BED = embed(self.bundle, self.requests(cases, k), self._generation).e_BED
        if e_BED.shape[1] != embeddings:
            raise ValueError(f"generation: makes {e_BED.shape[1]} embeddings a user, not {embeddings}")
        table_DN = torch.from_numpy(self.bundle.table).T
        made = []
        for b, e_ED in enumerate(e_BED):
            user = cases.at(np.full(embeddings, b))
            made.append(top_unseen(torch.from_numpy(e_ED) @ table_DN, user, k))
        return np.stack(made)


def packed_rows(log: UserLog) -> np.ndarray:
    """The log's events as rows of packed histories (`pinrec.history.ROW`)."""
    rows = np.zeros(len(log), ROW)
    for name in ("timestamp", "item_hash", "action", "surface", "is_query"):
        rows[name] = getattr(log.events, name)
    return rows
