"""HSTU (Zhai et al., ICML 2024, arXiv 2402.17152): point-wise gated attention with relative position and time.

A block is u, v, q, k = SiLU(W norm(x)); y = norm(SiLU(q k + bias) v / max_length) * u; x + W' y. The bias of places
i >= j is a learned function of i - j, plus one of the bucketed logarithm of the time between their events. The
authors take the time until the event to be predicted, which nobody knows when it is to be predicted; here it
is the time until the latest event known.

Shapes: B histories, T places, H heads, D width, E buckets.
"""

from typing import Any, Final, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from pinrec.baselines.fitting import FittingConfig, NextItem, Predictions, seeded
from pinrec.baselines.negatives import Negatives
from pinrec.baselines.sequences import real_lengths
from pinrec.protocols import Indices, Split

BUCKET: Final = 0.301  # width of a bucket of the time's natural logarithm, as the authors have it


class HSTUConfig(FittingConfig):
    """The defaults are the authors' for MovieLens-1M."""

    max_length: int = Field(200, ge=2, description="a user's latest items that are encoded")
    width: int = Field(50, ge=2)
    blocks: int = Field(2, ge=1)
    heads: int = Field(1, ge=1)
    attention_width: int = Field(50, ge=1, description="width of a head's queries and keys")
    value_width: int = Field(50, ge=1, description="width of a head's values and gates")
    embedding_dropout: float = Field(0.2, ge=0, lt=1)
    dropout: float = Field(0.2, ge=0, lt=1)
    positions: Literal["from_end", "from_start"] = Field(
        "from_start", description="from which end of the history the learned positions count"
    )
    position_std: float = Field(0.02, gt=0, description="of the normal distribution that positions begin with")
    time_buckets: int = Field(128, ge=1)
    negatives: int = Field(128, ge=1, description="uniform, shared by the predictions of a step")
    temperature: float = Field(0.05, gt=0)


class HSTU(NextItem):
    """See the module; a `Contender`."""

    def __init__(self, split: Split, config: HSTUConfig, seed: int) -> None:
        with seeded(seed):
            self.model = HSTUModel(len(split.log.catalogue), config)
        super().__init__(split, config, seed, self.model)
        # Uncorrected, as published: all negatives are equally likely, so their weight is a constant.
        self.negatives = Negatives(self.counts_N, config.negatives, log_q=False)
        self._temperature = torch.tensor(config.temperature)

    def encode(self, rows_BT: Indices) -> Tensor:
        """See `Fitted.encode`; L2-normalised."""
        rows = np.maximum(rows_BT, 0)
        item_BT, timestamp_BT = self.log.item[rows], self.log.events.timestamp[rows]
        h_BTD: Tensor = self.model(*map(torch.as_tensor, (item_BT, timestamp_BT, real_lengths(rows_BT))))
        return h_BTD

    def items(self) -> Tensor:
        """The normalised embeddings."""
        return F.normalize(self.model.item.weight, dim=-1)

    def objective(self, made: Predictions, rng: np.random.Generator) -> Tensor:
        """See `NextItem.objective`."""
        return self.negatives.loss(rng, made.hidden, made.target, self._vectors, self._temperature)

    def _vectors(self, items: Indices) -> Tensor:
        return F.normalize(self.model.item(torch.as_tensor(items)), dim=-1)


class HSTUModel(nn.Module):
    """Embeddings and blocks."""

    def __init__(self, items: int, config: HSTUConfig) -> None:
        super().__init__()
        self.config = config
        self.item = nn.Embedding(items, config.width)
        self.position = nn.Embedding(config.max_length, config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.blocks))
        nn.init.trunc_normal_(self.item.weight, 0.0, 0.02, -0.04, 0.04)
        std = config.position_std
        nn.init.trunc_normal_(self.position.weight, 0.0, std, -2 * std, 2 * std)

    def forward(self, item_BT: Tensor, timestamp_BT: Tensor, length_B: Tensor) -> Tensor:
        """[B, T, D], L2-normalised, from items int64[B, T] and epoch seconds; `length_B` places are real."""
        config, places = self.config, item_BT.shape[1]
        place_T = torch.arange(places)
        place_BT = place_T[None]
        if config.positions == "from_end":
            place_BT = (place_BT + config.max_length - length_B[:, None]).clamp(max=config.max_length - 1)
        x_BTD = self.item(item_BT) * config.width**0.5 + self.position(place_BT)
        x_BTD = F.dropout(x_BTD, config.embedding_dropout, self.training)
        # Seconds as float32 would be minutes off at today's epoch; their differences are not.
        ago_BTT = (timestamp_BT[:, :, None] - timestamp_BT[:, None, :]).float()
        bucket_BTT = (ago_BTT.abs().clamp(min=1.0).log() / BUCKET).long().clamp(max=config.time_buckets)
        distance_TT = (place_T[:, None] - place_T).clamp(min=0)
        for block in self.blocks:
            x_BTD = block(x_BTD, distance_TT, bucket_BTT)
        return F.normalize(x_BTD, dim=-1)


class Block(nn.Module):
    """See the module."""

    def __init__(self, config: HSTUConfig) -> None:
        super().__init__()
        self.config = config
        values, keys = config.heads * config.value_width, config.heads * config.attention_width
        self.sizes = [values, values, keys, keys]
        self.norm, self.value_norm = nn.LayerNorm(config.width, eps=1e-6), nn.LayerNorm(values, eps=1e-6)
        self.project, self.out = nn.Linear(config.width, sum(self.sizes), bias=False), nn.Linear(values, config.width)
        self.by_distance = nn.Parameter(torch.empty(config.max_length).normal_(0.0, 0.02))
        self.by_time = nn.Parameter(torch.empty(config.time_buckets + 1).normal_(0.0, 0.02))

    def forward(self, x_BTD: Tensor, distance_TT: Tensor, bucket_BTT: Tensor) -> Tensor:
        """[B, T, D]."""
        config = self.config
        u, v, q, k = torch.split(F.silu(self.project(self.norm(x_BTD))), self.sizes, -1)
        q, k, v = (t.reshape(*t.shape[:2], config.heads, -1).transpose(1, 2) for t in (q, k, v))
        bias_BTT = looked_up(self.by_time, bucket_BTT) + looked_up(self.by_distance, distance_TT)
        weight_BHTT = F.silu(q @ k.mT + bias_BTT[:, None]).tril() / config.max_length
        y = self.value_norm((weight_BHTT @ v).transpose(1, 2).flatten(2)) * u
        out: Tensor = x_BTD + self.out(F.dropout(y, config.dropout, self.training))
        return out


def looked_up(table_E: Tensor, index: Tensor) -> Tensor:
    """Entries of a small table, of the shape of `index`; its gradient is counted, not scattered: much faster."""
    entries: Tensor = _LookUp.apply(table_E, index)  # type: ignore[no-untyped-call]
    return entries


class _LookUp(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table_E: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.length = len(table_E)
        return table_E[index]

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Any:
        (index,) = ctx.saved_tensors
        sums = torch.bincount(index.flatten(), upstream[0].flatten().double(), ctx.length)
        return sums.to(upstream[0].dtype), None
