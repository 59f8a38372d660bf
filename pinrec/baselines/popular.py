"""What is popular, of all time or of late: the baseline that knows nothing of the user."""

from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from pinrec.baselines.contender import one_list, top_unseen
from pinrec.baselines.sequences import Sequences
from pinrec.config import Frozen
from pinrec.measures import Rows
from pinrec.protocols import Cases, Split


class PopularConfig(Frozen):
    """Which events count, and how much."""

    kind: Literal["all_time", "recent"] = "all_time"
    half_life_s: float = Field(86_400.0, gt=0, description="recent: an event this much older counts half")


class Popular:
    """Counts engagements, several in a row with one item once; a `Contender` with nothing to fit."""

    def __init__(self, split: Split, config: PopularConfig, _seed: int = 0) -> None:
        self.epochs = self.epoch = 0
        row = Sequences.of_training(split).engaged(split.log).row
        age_s = split.log.events.timestamp[row].max(initial=0.0) - split.log.events.timestamp[row]
        weight = np.exp2(-age_s / config.half_life_s) if config.kind == "recent" else np.ones(len(row))
        counts = np.bincount(split.log.item[row], weight, len(split.log.catalogue))
        self._scores_N = torch.as_tensor(counts.astype(np.float32))

    def fit_epoch(self) -> float:
        """Nothing to do."""
        return 0.0

    def state(self) -> dict[str, Tensor]:
        """Nothing to keep."""
        return {}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Nothing to load."""

    def scores(self, cases: Cases) -> Tensor:
        """A score for every item: float32[B, N]."""
        return self._scores_N.repeat(len(cases), 1)

    def ranked(self, cases: Cases, k: int) -> Rows:
        """The k most popular unseen items: int64[B, k]."""
        return top_unseen(self.scores(cases), cases, k)

    def generated(self, cases: Cases, embeddings: int, k: int) -> Rows:
        """The one list, cut into as many parts as there are embeddings: int64[B, embeddings, k]."""
        return one_list(self, cases, embeddings, k)
