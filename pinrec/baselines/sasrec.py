"""SASRec (Kang and McAuley, ICDM 2018): causal self-attention over item ids; items are scored by their own embeddings.

Two losses: binary cross entropy against one item the user never met, as published, and the exact softmax over
the catalogue, which is what makes it strong (Klenitskiy and Vasilev, RecSys 2023).
"""

from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from pinrec.baselines.fitting import FittingConfig, NextItem, Predictions, seeded
from pinrec.baselines.sequences import real_lengths
from pinrec.losses import exact_softmax
from pinrec.protocols import Indices, Split


class SASRecConfig(FittingConfig):
    """The defaults are the authors'; where public implementations differ from them, there is a field."""

    epochs: int = Field(200, ge=1, description="passes over the training users")
    loss: Literal["bce", "softmax"] = "bce"
    width: int = Field(50, ge=2)
    blocks: int = Field(2, ge=1)
    heads: int = Field(1, ge=1)
    dropout: float = Field(0.5, ge=0, lt=1)
    positions: Literal["from_end", "from_start"] = Field(
        "from_end", description="from which end of the history the learned positions count"
    )
    residual: Literal["query", "input"] = Field(
        "query", description="what attention is added to: its normalised queries, or what they were before"
    )
    attend_padding: bool = Field(
        False, description="empty places in front of a short history are zero vectors that attention sees"
    )
    initial: Literal["xavier", "normal"] = Field("xavier", description="normal is of deviation .02")


class SASRec(NextItem):
    """See the module; a `Contender`."""

    def __init__(self, split: Split, config: SASRecConfig, seed: int) -> None:
        with seeded(seed):
            self.model = SASRecModel(len(split.log.catalogue), config)
        super().__init__(split, config, seed, self.model)
        self.config = config
        self._items = len(split.log.catalogue)
        # Sorted (user, item) pairs, each one number: what must not be drawn as a negative.
        self._met = np.unique(self._pair(self.positives.owner, self.log.item[self.positives.row]))

    def encode(self, rows_BT: Indices) -> Tensor:
        """See `Fitted.encode`."""
        item_BT = torch.as_tensor(self.log.item[np.maximum(rows_BT, 0)])
        h_BTD: Tensor = self.model(item_BT, torch.as_tensor(real_lengths(rows_BT)))
        return h_BTD

    def items(self) -> Tensor:
        """The embedding table."""
        return self.model.item.weight

    def objective(self, made: Predictions, rng: np.random.Generator) -> Tensor:
        """See `NextItem.objective`."""
        if self.config.loss == "softmax":
            return exact_softmax(made.hidden, self.model.item.weight, torch.as_tensor(made.target))
        h_MD, positive_MD = made.hidden, self.model.item(torch.as_tensor(made.target))
        negative_MD = self.model.item(torch.as_tensor(self._unmet(made.user, rng)))
        return F.softplus(-(h_MD * positive_MD).sum(1)).mean() + F.softplus((h_MD * negative_MD).sum(1)).mean()

    def _pair(self, user: Indices, item: Indices) -> Indices:
        return user * self._items + item

    def _unmet(self, user_M: Indices, rng: np.random.Generator) -> Indices:
        """A uniform item for each prediction that its user never met; for who met (nearly) all of them, any."""
        item_M = rng.integers(0, self._items, len(user_M))
        wrong = np.arange(len(user_M))
        for _ in range(100):
            pair = self._pair(user_M[wrong], item_M[wrong])
            at = np.minimum(np.searchsorted(self._met, pair), len(self._met) - 1)
            wrong = wrong[self._met[at] == pair]
            if not len(wrong):
                break
            item_M[wrong] = rng.integers(0, self._items, len(wrong))
        return item_M


def _draw(weight: Tensor, config: SASRecConfig) -> None:
    if config.initial == "xavier":
        nn.init.xavier_normal_(weight)
    else:
        nn.init.normal_(weight, 0.0, 0.02)


class SASRecModel(nn.Module):
    """Embeddings, blocks, a last norm."""

    def __init__(self, items: int, config: SASRecConfig) -> None:
        super().__init__()
        self.config = config
        self.item = nn.Embedding(items, config.width)
        self.position = nn.Embedding(config.max_length, config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.blocks))
        self.norm = nn.LayerNorm(config.width, eps=1e-8)
        for module in self.modules():
            if isinstance(module, nn.Embedding):
                _draw(module.weight, config)

    def forward(self, item_BT: Tensor, length_B: Tensor) -> Tensor:
        """[B, T, D] from items int64[B, T], of which `length_B` are real."""
        config, places = self.config, item_BT.shape[1]
        place_BT = torch.arange(places)[None]
        if config.positions == "from_end":
            place_BT = (place_BT + config.max_length - length_B[:, None]).clamp(max=config.max_length - 1)
        x_BTD = self.item(item_BT) * config.width**0.5 + self.position(place_BT)
        x_BTD = F.dropout(x_BTD, config.dropout, self.training)
        mask = None
        if config.attend_padding:
            # So many equal keys weigh as much as one whose logit is higher by the log of their number.
            causal_TT = torch.full((places, places), -torch.inf).triu(1)
            empty_BT1 = (config.max_length - length_B).log()[:, None, None].expand(-1, places, 1)
            mask = torch.cat((empty_BT1, causal_TT.expand(len(item_BT), -1, -1)), 2)[:, None]
        for block in self.blocks:
            x_BTD = block(x_BTD, mask)
        x: Tensor = self.norm(x_BTD)
        return x


class Block(nn.Module):
    """Attention from normalised queries to the keys and values as they are, then a position-wise network."""

    def __init__(self, config: SASRecConfig) -> None:
        super().__init__()
        width = config.width
        self.config = config
        self.attention_norm, self.forward_norm = nn.LayerNorm(width, eps=1e-8), nn.LayerNorm(width, eps=1e-8)
        self.query, self.key_value = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.out, self.inner, self.outer = nn.Linear(width, width), nn.Linear(width, width), nn.Linear(width, width)
        bound = (6 / (4 * width)) ** 0.5  # Xavier's for queries, keys and values as one matrix
        for linear in (self.query, self.key_value):
            nn.init.uniform_(linear.weight, -bound, bound)
            nn.init.zeros_(linear.bias)
        # With "xavier" the position-wise network keeps torch's own: public code has it as convolutions, left alone.
        for linear in (self.out,) if config.initial == "xavier" else (self.out, self.inner, self.outer):
            _draw(linear.weight, config)
            nn.init.zeros_(linear.bias)

    def forward(self, x_BTD: Tensor, mask: Tensor | None) -> Tensor:
        """[B, T, D]; with a mask [B, 1, T, 1 + T] there is a key of zeros in front."""
        config, dropout = self.config, self.config.dropout if self.training else 0.0
        q_BTD = self.attention_norm(x_BTD)
        k_BTD, v_BTD = self.key_value(x_BTD if mask is None else F.pad(x_BTD, (0, 0, 1, 0))).chunk(2, -1)
        q, k, v = (t.reshape(*t.shape[:2], config.heads, -1).transpose(1, 2) for t in (self.query(q_BTD), k_BTD, v_BTD))
        a = F.scaled_dot_product_attention(q, k, v, mask, dropout, is_causal=mask is None)
        x_BTD = (q_BTD if config.residual == "query" else x_BTD) + self.out(a.transpose(1, 2).flatten(2))
        x_BTD = self.forward_norm(x_BTD)
        inner = F.relu(F.dropout(self.inner(x_BTD), dropout))
        return x_BTD + F.dropout(self.outer(inner), dropout)
