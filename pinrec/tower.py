"""Items and queries as vectors: content, hashed features and a multi-hash ID embedding, through one MLP.

Shapes: N items, K features of a bag, W width of a feature's row, C content numbers, D width.
"""

from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pinrec.config import ModelConfig

# splitmix64 (Steele, Lea, Flood 2014), its constants as signed 64-bit numbers: torch has no unsigned arithmetic.
_GOLDEN: Final = 0x9E3779B97F4A7C15 - (1 << 64)
_MIX_1: Final = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX_2: Final = 0x94D049BB133111EB - (1 << 64)


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift; torch's own keeps the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def mix(x: Tensor, seed: int) -> Tensor:
    """A 64-bit hash of int64 `x` that differs with `seed`; products wrap around."""
    x = x + torch.tensor(_GOLDEN) * (seed + 1)
    x = (x ^ _shift(x, 30)) * _MIX_1
    x = (x ^ _shift(x, 27)) * _MIX_2
    return x ^ _shift(x, 31)


class MultiHashEmbedding(nn.Module):
    """k hash functions into k tables of width d / k, concatenated (method: Multi-hash ID embedding).

    Needs no vocabulary: two items share a vector only if they collide in every table.
    """

    def __init__(self, tables: int, buckets: int, width: int, weight: Tensor | None = None) -> None:
        super().__init__()
        self.tables, self.buckets = tables, buckets
        if weight is not None:  # as it lies, mapped perhaps: neither copied nor trained
            self.weight = nn.Embedding(len(weight), weight.shape[1], _weight=weight, _freeze=True)
            return
        self.weight = nn.Embedding(tables * buckets, width // tables)
        nn.init.normal_(self.weight.weight, std=0.1)

    def forward(self, hash_N: Tensor) -> Tensor:
        """int64[N] (the bits of the 64-bit hash) -> float32[N, width]."""
        embedded: Tensor = self.weight(self.index(hash_N))
        return embedded.flatten(1)

    def index(self, hash_N: Tensor) -> Tensor:
        """Rows of the tables, int64[N, k]."""
        return torch.stack(
            [_shift(mix(hash_N, table), 1) % self.buckets + table * self.buckets for table in range(self.tables)], 1
        )


def id_tables_shape(config: ModelConfig) -> tuple[int, int]:
    """(rows of all tables, width of one)."""
    return config.hash_tables * config.hash_buckets, config.id_width // config.hash_tables


class ItemTower(nn.Module):
    """[content, mean of the feature bag, ID embedding] -> MLP -> L2. A query has a learned null in the ID's place.

    A residual tower adds the MLP to linear maps of the ID embedding and, by `bag_gain`, of the bag, and begins with
    those alone: items with features in common are then alike from the first step on and others apart, where an MLP's
    biases put all of them close together and features are learned last. Tokens begin as the items' own vectors with it
    (`PinRecModel`).

    Args:
        config: sizes.
        ids: tables of the ID embedding that are there already, float32 `id_tables_shape`; None = new ones.
    """

    def __init__(self, config: ModelConfig, ids: Tensor | None = None) -> None:
        super().__init__()
        self.ids = MultiHashEmbedding(config.hash_tables, config.hash_buckets, config.id_width, ids)
        self.query = nn.Parameter(torch.randn(config.id_width) * 0.1)
        self.bag = nn.EmbeddingBag(config.bag_buckets + 1, config.bag_width, mode="mean", padding_idx=0)
        nn.init.normal_(self.bag.weight, std=0.1)
        with torch.no_grad():
            self.bag.weight[0].zero_()
        inputs = config.content_width + config.bag_width + config.id_width
        last = nn.Linear(2 * config.width, config.width)
        self.dropout = config.inner_dropout
        self.mlp = nn.Sequential(nn.Linear(inputs, 2 * config.width), nn.GELU(), last)
        self.skip: nn.Linear | None = None
        self.bag_skip: nn.Linear | None = None
        if config.tower == "residual":
            self.skip = nn.Linear(config.id_width, config.width, bias=False)
            nn.init.orthogonal_(self.skip.weight)
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
            if config.bag_gain:
                self.bag_gain = config.bag_gain
                self.bag_skip = nn.Linear(config.bag_width, config.width, bias=False)
                nn.init.orthogonal_(self.bag_skip.weight)

    def forward(self, hash_N: Tensor | None, bag_NK: Tensor, content_NC: Tensor, has_content_N: Tensor) -> Tensor:
        """L2-normalised vectors, float32[N, D]; `hash_N` is None for queries."""
        n = len(bag_NK)
        id_NI = self.query.expand(n, -1) if hash_N is None else self.ids(hash_N)
        content_NC = F.normalize(content_NC, dim=-1) * has_content_N[:, None]
        bag_NW = self.bag(bag_NK)
        features = torch.cat((content_NC, bag_NW, id_NI), 1)
        first, activation, last = self.mlp
        made = last(F.dropout(activation(first(features)), self.dropout, self.training))
        if self.skip is not None:
            made = made + self.skip(id_NI)
        if self.bag_skip is not None:
            made = made + self.bag_gain * self.bag_skip(bag_NW)
        return F.normalize(made, dim=-1)
