"""The item tower of the baselines that see item features: id embedding, bag of hashed features, content vector.

Shapes: n items, N items of the catalogue, D width, G features of an item.
"""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pinrec.items import Catalogue
from pinrec.protocols import Indices


class ItemTower(nn.Module):
    """L2-normalised vectors of catalogue rows."""

    def __init__(self, catalogue: Catalogue, width: int) -> None:
        super().__init__()
        # The features there are, numbered without gaps; 0 is padding.
        features, at = np.unique(np.append(catalogue.bags.ravel(), 0), return_inverse=True)
        self.bag_NG = torch.as_tensor(at[:-1].reshape(catalogue.bags.shape).astype(np.int64))
        self.content_NC = torch.as_tensor(catalogue.content)
        self.id = nn.Embedding(len(catalogue), width)
        self.bag = nn.EmbeddingBag(len(features), width, mode="mean", padding_idx=0)
        self.project = nn.Linear(2 * width + self.content_NC.shape[1], width)
        for table in (self.id, self.bag):
            nn.init.normal_(table.weight, 0.0, width**-0.5)
        with torch.no_grad():
            self.bag.weight[0] = 0.0

    def forward(self, items: Indices) -> Tensor:
        """[n, D] from n catalogue rows."""
        rows = torch.as_tensor(items)
        parts = (self.id(rows), self.bag(self.bag_NG[rows]), self.content_NC[rows])
        return F.normalize(self.project(torch.cat(parts, 1)), dim=-1)

    def each(self, items_BT: Indices) -> Tensor:
        """[B, T, D] from int64[B, T]; an item that is there often is computed once."""
        used, at = np.unique(items_BT, return_inverse=True)
        vectors: Tensor = self(used)
        return vectors[torch.as_tensor(at.reshape(items_BT.shape))]

    def all(self) -> Tensor:
        """[N, D], the whole catalogue."""
        vectors: Tensor = self(np.arange(len(self.bag_NG)))
        return vectors
