"""A two-tower model (Covington et al., RecSys 2016; Yi et al., RecSys 2019): pooled history against item vectors.

The user tower is an MLP over the mean of the item vectors of the history so far. Negatives are the step's own
targets and uniform ones, with logQ correction.
"""

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from pinrec.baselines.fitting import FittingConfig, NextItem, Predictions, seeded
from pinrec.baselines.negatives import Negatives
from pinrec.baselines.towers import ItemTower
from pinrec.items import Catalogue
from pinrec.protocols import Indices, Split


class TwoTowerConfig(FittingConfig):
    """Sizes and rates."""

    epochs: int = Field(40, ge=1, description="passes over the training users")
    batch_users: int = Field(256, ge=1, description="users of one step")
    weight_decay: float = Field(0.01, ge=0)
    width: int = Field(64, ge=2)
    hidden: int = Field(128, ge=1, description="width of the user tower's MLP")
    dropout: float = Field(0.2, ge=0, lt=1)
    uniform_negatives: int = Field(512, ge=1)
    in_batch_negatives: int = Field(512, ge=0)
    temperature: float = Field(0.07, gt=0)


class TwoTower(NextItem):
    """See the module; a `Contender`."""

    def __init__(self, split: Split, config: TwoTowerConfig, seed: int) -> None:
        with seeded(seed):
            self.model = TwoTowerModel(split.log.catalogue, config)
        super().__init__(split, config, seed, self.model)
        self.negatives = Negatives(self.counts_N, config.uniform_negatives, config.in_batch_negatives)
        self._temperature = torch.tensor(config.temperature)

    def encode(self, rows_BT: Indices) -> Tensor:
        """See `Fitted.encode`; L2-normalised."""
        h_BTD: Tensor = self.model(self.log.item[np.maximum(rows_BT, 0)])
        return h_BTD

    def items(self) -> Tensor:
        """The item tower's vectors."""
        return self.model.items.all()

    def objective(self, made: Predictions, rng: np.random.Generator) -> Tensor:
        """See `NextItem.objective`."""
        return self.negatives.loss(rng, made.hidden, made.target, self.model.items, self._temperature)


class TwoTowerModel(nn.Module):
    """Both towers."""

    def __init__(self, catalogue: Catalogue, config: TwoTowerConfig) -> None:
        super().__init__()
        self.items = ItemTower(catalogue, config.width)
        self.user = nn.Sequential(
            nn.Dropout(config.dropout),
            nn.Linear(config.width, config.hidden),
            nn.ReLU(),
            nn.Linear(config.hidden, config.width),
        )

    def forward(self, item_BT: Indices) -> Tensor:
        """[B, T, D], L2-normalised: at each place the user as known by the items up to it."""
        seen_T1 = torch.arange(1, item_BT.shape[1] + 1)[:, None]
        mean_BTD = self.items.each(item_BT).cumsum(1) / seen_T1
        return F.normalize(self.user(F.normalize(mean_BTD, dim=-1)), dim=-1)
