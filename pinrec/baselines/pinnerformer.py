"""PinnerFormer (Pancha et al., KDD 2022, arXiv 2205.04507): predicts engagement over a window of days.

The input is every event: its item, action, surface and time. The dense all-action loss takes random places of a
history and for each a random item the user engages with in the window of days after it. Negatives are the
step's own targets and uniform ones, with logQ correction; the temperature is learned.

Items are vectors of ids and features here, where the authors have a pre-trained embedding of the item's content,
and the sizes are those of the other baselines.

Shapes: B histories, T places, D width, M predictions.
"""

import math
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from pinrec.baselines.fitting import Fitted, FittingConfig, seeded
from pinrec.baselines.negatives import Negatives
from pinrec.baselines.sequences import Sequences, by_length, real_lengths
from pinrec.baselines.towers import ItemTower
from pinrec.config import Vocabulary
from pinrec.items import Catalogue
from pinrec.protocols import Cases, Indices, Split

DAY_S: Final = 86_400.0
PERIODS_S: Final = (DAY_S, 7 * DAY_S)
FREQUENCIES: Final = 8  # of the logarithm of the time since the event before
FIRST_TEMPERATURE: Final = 0.07
LOWEST_TEMPERATURE: Final = 0.01


class PinnerFormerConfig(FittingConfig):
    """Sizes and rates."""

    epochs: int = Field(40, ge=1, description="passes over the training users")
    batch_users: int = Field(256, ge=1, description="users of one step")
    max_length: int = Field(256, ge=2, description="events of a history that are encoded")
    weight_decay: float = Field(0.01, ge=0)
    width: int = Field(64, ge=2)
    blocks: int = Field(2, ge=1)
    heads: int = Field(2, ge=1)
    dropout: float = Field(0.1, ge=0, lt=1)
    window_days: float = Field(28.0, gt=0, description="how far ahead engagement is predicted")
    places: int = Field(32, ge=1, description="random places of a history that are predicted from in one step")
    uniform_negatives: int = Field(512, ge=1)
    in_batch_negatives: int = Field(512, ge=0)


class PinnerFormer(Fitted):
    """See the module; a `Contender`."""

    def __init__(self, split: Split, config: PinnerFormerConfig, seed: int) -> None:
        with seeded(seed):
            self.model = PinnerFormerModel(split.log.catalogue, split.log.vocabulary, config)
        super().__init__(split, config, seed, self.model)
        self.config = config
        self.negatives = Negatives(self.counts_N, config.uniform_negatives, config.in_batch_negatives)
        # One ascending number for user and time, so that one search finds the end of every window.
        time, self._window_s = split.log.events.timestamp, config.window_days * DAY_S
        span_s = float(np.ptp(time)) + self._window_s + 1.0 if len(time) else 1.0
        self._moment = split.log.events.user * span_s + (time - time.min(initial=np.inf))
        self._moment_of_positive = self._moment[self.positives.row]

    def trainable(self) -> Indices:
        """Users with two events, one of them engaged."""
        return np.flatnonzero((self.training.length > 1) & (self.positives.length > 0))

    def histories(self, cases: Cases) -> Sequences:
        """All events."""
        return Sequences.of_cases(cases)

    def loss(self, users: Indices, rng: np.random.Generator) -> tuple[Tensor, int]:
        """See `Fitted.loss`. Of a history longer than `max_length` a random part is encoded."""
        length = np.minimum(self.training.length[users], self.config.max_length)
        begin = rng.integers(0, self.training.length[users] - length + 1)
        hidden, targets = [], []
        for group in by_length(length):
            rows_BT = self.training.padded(users[group], begin[group], length[group])
            place, target = self._targets(rows_BT, rng)
            hidden.append(self.encode(rows_BT).flatten(0, 1)[torch.as_tensor(place)])
            targets.append(target)
        target_M = np.concatenate(targets)
        if not len(target_M):
            return torch.zeros(()), 0
        loss = self.negatives.loss(rng, torch.cat(hidden), target_M, self.model.items, self.model.temperature)
        return loss, len(target_M)

    def _targets(self, rows_BT: Indices, rng: np.random.Generator) -> tuple[Indices, Indices]:
        """Random places, as indices into the flat batch, and a random engaged item in the window after each."""
        draw_BT = np.where(rows_BT >= 0, rng.random(rows_BT.shape), np.inf)
        rank_BT = draw_BT.argsort(1).argsort(1)
        place = np.flatnonzero((rank_BT < self.config.places) & (rows_BT >= 0))
        row = rows_BT.ravel()[place]
        first = np.searchsorted(self.positives.row, row, side="right")
        end = np.searchsorted(self._moment_of_positive, self._moment[row] + self._window_s, side="right")
        chosen = first + (rng.random(len(row)) * np.maximum(0, end - first)).astype(np.int64)
        target = self.log.item[self.positives.row[np.minimum(chosen, len(self.positives.row) - 1)]]
        # To engage with what is just shown is no discovery.
        real = (first < end) & (target != self.log.item[row])
        return place[real], target[real]

    def encode(self, rows_BT: Indices) -> Tensor:
        """See `Fitted.encode`; L2-normalised."""
        rows, events = np.maximum(rows_BT, 0), self.log.events
        h_BTD: Tensor = self.model(
            self.log.item[rows],
            events.action[rows].astype(np.int64),
            events.surface[rows].astype(np.int64),
            events.timestamp[rows],
            real_lengths(rows_BT),
        )
        return h_BTD

    def items(self) -> Tensor:
        """The item tower's vectors."""
        return self.model.items.all()


class PinnerFormerModel(nn.Module):
    """Event tokens, a causal transformer with the norm first, an MLP head."""

    def __init__(self, catalogue: Catalogue, vocabulary: Vocabulary, config: PinnerFormerConfig) -> None:
        super().__init__()
        width = config.width
        self.config = config
        self.items = ItemTower(catalogue, width)
        self.action = nn.Embedding(len(vocabulary.actions), width)
        self.surface = nn.Embedding(len(vocabulary.surfaces), width)
        self.gap = nn.Linear(1, FREQUENCIES)
        self.token = nn.Linear(width + 1 + FREQUENCIES + 2 * len(PERIODS_S), width)
        self.position = nn.Embedding(config.max_length, width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.blocks))
        self.head = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )
        self.log_temperature = nn.Parameter(torch.tensor(math.log(FIRST_TEMPERATURE)))
        for table in (self.action, self.surface, self.position):
            nn.init.normal_(table.weight, 0.0, 0.02)

    @property
    def temperature(self) -> Tensor:
        """A scalar."""
        return self.log_temperature.exp().clamp(min=LOWEST_TEMPERATURE)

    def forward(
        self,
        item_BT: Indices,
        action_BT: Indices,
        surface_BT: Indices,
        timestamp_BT: NDArray[np.float64],
        length_B: Indices,
    ) -> Tensor:
        """[B, T, D], L2-normalised. Item -1 (a query, an unknown item) is a token without item."""
        known_BT1 = torch.as_tensor((item_BT >= 0)[:, :, None])
        item_BTD = self.items.each(np.maximum(item_BT, 0)) * known_BT1
        place_BT = np.minimum(
            np.arange(item_BT.shape[1]) + self.config.max_length - length_B[:, None], self.config.max_length - 1
        )
        x_BTD = (
            self.token(torch.cat((item_BTD, self._time(timestamp_BT)), -1))
            + self.action(torch.as_tensor(action_BT))
            + self.surface(torch.as_tensor(surface_BT))
            + self.position(torch.as_tensor(place_BT))
        )
        x_BTD = F.dropout(x_BTD, self.config.dropout, self.training)
        for block in self.blocks:
            x_BTD = block(x_BTD)
        return F.normalize(self.head(x_BTD), dim=-1)

    def _time(self, timestamp_BT: NDArray[np.float64]) -> Tensor:
        """Phases of day and week, and the logarithm of the time since the event before."""
        phase = [2 * np.pi * np.mod(timestamp_BT, period) / period for period in PERIODS_S]
        absolute = np.stack([f(p) for p in phase for f in (np.sin, np.cos)], -1).astype(np.float32)
        gap_s = np.maximum(0.0, np.diff(timestamp_BT, axis=1, prepend=timestamp_BT[:, :1]))
        gap_BT1 = torch.as_tensor(np.log1p(gap_s).astype(np.float32))[:, :, None]
        return torch.cat((torch.as_tensor(absolute), gap_BT1 / 10, self.gap(gap_BT1).cos()), -1)


class Block(nn.Module):
    """Causal attention and an MLP, each behind a norm."""

    def __init__(self, config: PinnerFormerConfig) -> None:
        super().__init__()
        width = config.width
        self.config = config
        self.attention_norm, self.qkv, self.out = (
            nn.LayerNorm(width),
            nn.Linear(width, 3 * width),
            nn.Linear(width, width),
        )
        self.forward_norm, self.inner, self.outer = (
            nn.LayerNorm(width),
            nn.Linear(width, 4 * width),
            nn.Linear(4 * width, width),
        )

    def forward(self, x_BTD: Tensor) -> Tensor:
        """[B, T, D]."""
        dropout = self.config.dropout if self.training else 0.0
        q, k, v = self.qkv(self.attention_norm(x_BTD)).unflatten(2, (3, self.config.heads, -1)).permute(2, 0, 3, 1, 4)
        a = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x_BTD = x_BTD + F.dropout(self.out(a.transpose(1, 2).flatten(2)), dropout)
        return x_BTD + F.dropout(self.outer(F.gelu(self.inner(self.forward_norm(x_BTD)))), dropout)
