"""Time features and the output head.

Shapes: B rows, E embeddings a row, D width, F features.
"""

import math
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pinrec.config import ModelConfig, Vocabulary

DAY_S: Final = 86_400.0
PERIODS_S: Final = (DAY_S, 7 * DAY_S, 365.2425 * DAY_S)
UNCONDITIONED: Final = -1


class CalendarTime(nn.Module):
    """sin and cos of a timestamp at fixed periods: day, week, season (method: Absolute time)."""

    features = 2 * len(PERIODS_S)

    def forward(self, timestamp: Tensor) -> Tensor:
        """float64[...] epoch seconds -> float32[..., 6]. The turn is taken in float64; float32 is 128 s coarse."""
        assert timestamp.dtype == torch.float64
        turn = torch.stack([torch.remainder(timestamp / period, 1.0) for period in PERIODS_S], -1)
        angle = (2 * math.pi * turn).float()
        return torch.cat((angle.sin(), angle.cos()), -1)


class LogTime(nn.Module):
    """A span of time at log-scale frequencies with learned phases (method: Relative time)."""

    frequency_F: Tensor

    def __init__(self, max_s: float, frequencies: int = 8) -> None:
        super().__init__()
        self.max_s, self.features = max_s, frequencies + 1
        self.register_buffer("frequency_F", math.pi * 2.0 ** (torch.arange(frequencies) / 2 - 1), persistent=False)
        self.phase_F = nn.Parameter(torch.rand(frequencies) * 2 * math.pi)

    def forward(self, span_s: Tensor) -> Tensor:
        """Seconds [...] (clamped to 0..max_s) -> float32[..., features]."""
        scaled = torch.log1p(span_s.clamp(0, self.max_s)).float()[..., None] / math.log1p(self.max_s)
        return torch.cat((scaled, torch.sin(scaled * self.frequency_F + self.phase_F)), -1)


class OutputHead(nn.Module):
    """O(h, outcome, surface, offset): an MLP over all four with a residual from h, then L2.

    It stands between the tied input and output item vectors: without it training starts by predicting
    the last item itself. Each condition enters the first layer as a learned embedding (for the offset,
    a continuous function of its logarithm), which is the same as concatenating them in front of it.
    """

    def __init__(self, config: ModelConfig, vocabulary: Vocabulary) -> None:
        super().__init__()
        hidden = 2 * config.width
        self.dropout = config.inner_dropout
        self.state = nn.Linear(config.width, hidden)
        self.outcome = nn.Embedding(len(vocabulary.actions) + 1, hidden)
        self.surface = nn.Embedding(len(vocabulary.surfaces) + 1, hidden)
        self.time = LogTime(config.max_offset_s)
        self.offset = nn.Sequential(
            nn.Linear(self.time.features, config.width), nn.GELU(), nn.Linear(config.width, hidden)
        )
        self.no_offset = nn.Parameter(torch.zeros(hidden))
        self.out = nn.Linear(hidden, config.width)
        for table in (self.outcome, self.surface):
            nn.init.normal_(table.weight, std=0.3)

    def forward(self, h_BD: Tensor, outcome_BE: Tensor, surface_BE: Tensor, offset_s_BE: Tensor) -> Tensor:
        """e_BED; see `PinRecModel.head`."""
        assert outcome_BE.shape == surface_BE.shape == offset_s_BE.shape
        assert len(outcome_BE) == len(h_BD)
        offset = torch.where((offset_s_BE < 0)[..., None], self.no_offset, self.offset(self.time(offset_s_BE)))
        condition = self.outcome(outcome_BE + 1) + self.surface(surface_BE + 1) + offset
        hidden = F.dropout(F.gelu(self.state(h_BD)[:, None] + condition), self.dropout, self.training)
        return F.normalize(h_BD[:, None] + self.out(hidden), dim=-1)
