"""PinRec: one model, three modes (method: arXiv 2504.10507).

Shapes: B rows (users), L positions, D width, E embeddings a row, N items, K features of a bag, C content numbers or
candidates a row, O engaging actions.
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pinrec.backbone import Backbone, KVCache
from pinrec.config import ModelConfig, Vocabulary
from pinrec.heads import CalendarTime, LogTime, OutputHead
from pinrec.items import Catalogue
from pinrec.ranking import RankingHead
from pinrec.tower import ItemTower

FIRST_TEMPERATURE = 0.05
UNKNOWN = -1  # the action of a candidate, which nobody has met yet, or of an event that training hides


def as_int64(hashes: NDArray[np.uint64]) -> Tensor:
    """The bits of 64-bit hashes as int64, which is all torch can hold."""
    return torch.as_tensor(np.ascontiguousarray(hashes, np.uint64).view(np.int64))


def previous_timestamps(timestamp_BL: Tensor) -> Tensor:
    """Each event's predecessor's timestamp; NaN at a window's first event, which has none."""
    first = torch.full_like(timestamp_BL[..., :1], math.nan)
    return torch.cat((first, timestamp_BL[..., :-1]), -1)


class PinRecModel(nn.Module):
    """Item tower, tokens, causal backbone and output head; `ranking` is None where the config asks for no such head.

    The mode is not in the weights: training drops conditions at random, so one set of weights serves
    unconditioned, outcome and multi_token requests (see `head`).
    """

    def __init__(self, config: ModelConfig, vocabulary: Vocabulary, ids: Tensor | None = None) -> None:
        super().__init__()
        self.config, self.vocabulary = config, vocabulary
        self.tower = ItemTower(config, ids)
        self.item_in = nn.Linear(config.width, config.width)
        self.action = nn.Embedding(len(vocabulary.actions), config.width)
        self.surface = nn.Embedding(len(vocabulary.surfaces), config.width)
        for table in (self.action, self.surface):
            nn.init.normal_(table.weight, std=0.3)
        self.calendar, self.pause = CalendarTime(), LogTime(config.max_offset_s)
        self.time_in = nn.Linear(self.calendar.features + self.pause.features, config.width)
        self.no_previous = nn.Parameter(torch.zeros(self.pause.features))
        self.backbone = Backbone(config)
        self.output = OutputHead(config, vocabulary)
        self.log_temperature = nn.Parameter(torch.tensor(math.log(max(FIRST_TEMPERATURE, config.least_temperature))))
        self.ranking = RankingHead(config, vocabulary) if config.ranking else None
        if config.tower == "residual":
            self._begin_with_the_last_item()

    def _begin_with_the_last_item(self) -> None:
        """What is predicted begins as what was met last, with little of what all tokens have in common."""
        nn.init.eye_(self.item_in.weight)
        nn.init.zeros_(self.item_in.bias)
        for layer in (self.time_in, self.output.out):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        for table in (self.action, self.surface):
            with torch.no_grad():
                table.weight.mul_(0.1)

    @property
    def temperature(self) -> Tensor:
        """What inner products are divided by in training."""
        return self.log_temperature.exp().clamp(min=self.config.least_temperature)

    def item_vectors(self, hash_N: Tensor, bag_NK: Tensor, content_NC: Tensor, has_content_N: Tensor) -> Tensor:
        """L2-normalised item vectors, float32[N, D].

        Args:
            hash_N: int64, the bits of the item ids' 64-bit hashes (`as_int64`).
            bag_NK: int, `Catalogue.bags`.
            content_NC, has_content_N: float32 and bool, `Catalogue.content` and `.has_content`.
        """
        x_ND: Tensor = self.tower(hash_N, bag_NK, content_NC, has_content_N)
        return x_ND

    def query_vectors(self, bag_NK: Tensor) -> Tensor:
        """L2-normalised vectors of queries, float32[N, D]: the same tower without an ID embedding."""
        n = len(bag_NK)
        x_ND: Tensor = self.tower(
            None, bag_NK, torch.zeros(n, self.config.content_width), torch.zeros(n, dtype=torch.bool)
        )
        return x_ND

    @torch.no_grad()
    def item_table(self, catalogue: Catalogue, chunk: int = 65_536) -> NDArray[np.float32]:
        """Vectors of a whole catalogue, float32[N, D]."""
        table = np.empty((len(catalogue), self.config.width), np.float32)
        for at in range(0, len(catalogue), chunk):
            rows = slice(at, at + chunk)
            table[rows] = (
                self.item_vectors(
                    as_int64(catalogue.hashes[rows]),
                    torch.as_tensor(catalogue.bags[rows]),
                    torch.as_tensor(catalogue.content[rows]),
                    torch.as_tensor(catalogue.has_content[rows]),
                )
                .cpu()
                .numpy()
            )
        return table

    def tokens(
        self, item_BLD: Tensor, action_BL: Tensor, surface_BL: Tensor, timestamp_BL: Tensor, previous_BL: Tensor
    ) -> Tensor:
        """Tokens x_BLD (any leading shape will do): item + action + surface + time.

        Nothing here knows what time it is now, so a token never changes once its event has happened.

        Args:
            item_BLD: item or query vectors.
            action_BL, surface_BL: int64 vocabulary indices; with a ranking head an action may be UNKNOWN.
            timestamp_BL: float64 epoch seconds.
            previous_BL: float64, the timestamp of the event before in the same window, NaN where
                there is none (`previous_timestamps`).
        """
        assert timestamp_BL.dtype == previous_BL.dtype == torch.float64
        none = previous_BL.isnan()
        pause = self.pause(timestamp_BL - previous_BL.where(~none, timestamp_BL))
        pause = torch.where(none[..., None], self.no_previous, pause)
        time = self.time_in(torch.cat((self.calendar(timestamp_BL), pause), -1))
        item = self.item_in(item_BLD) * self.config.width**0.5
        x_BLD: Tensor = item + self._actions(action_BL) + self.surface(surface_BL) + time
        return x_BLD

    def _actions(self, action_BL: Tensor) -> Tensor:
        if self.ranking is None:
            known_BLD: Tensor = self.action(action_BL)
            return known_BLD
        hidden_BL1 = (action_BL == UNKNOWN)[..., None]
        return torch.where(hidden_BL1, self.ranking.unknown, self.action(action_BL.clamp(min=0)))

    def forward(self, x_BLD: Tensor) -> Tensor:
        """States h_BLD of right-padded windows of tokens, without a cache (training)."""
        h_BLD: Tensor = self.backbone(x_BLD)
        return h_BLD

    def prefill(self, x_BLD: Tensor, length_B: Tensor, kept: torch.dtype = torch.float32) -> tuple[Tensor, KVCache]:
        """States h_BLD of right-padded windows, and a cache valid to each row's own length.

        What stands in h at or behind a row's length is meaningless. `kept`: see `Backbone.prefill`.
        """
        return self.backbone.prefill(x_BLD, length_B, kept)

    def extend(self, x_BND: Tensor, cache: KVCache, kept: torch.dtype = torch.float32) -> Tensor:
        """States h_BND of N more tokens behind each row; the cache grows by N in every row, in place."""
        return self.backbone.extend(x_BND, cache, kept)

    def decode(self, x_BD: Tensor, cache: KVCache) -> Tensor:
        """State h_BD of one more token in each row; see `extend`."""
        return self.backbone.decode(x_BD, cache)

    def head(self, h_BD: Tensor, outcome_BE: Tensor, surface_BE: Tensor, offset_s_BE: Tensor) -> Tensor:
        """L2-normalised embeddings e_BED, E of them for each row, to be searched by inner product.

        Args:
            h_BD: the state at each row's last event.
            outcome_BE: int64 action indices to aim at; -1 = any.
            surface_BE: int64 surface indices to aim at; -1 = any.
            offset_s_BE: float seconds after the row's last event; negative = any. Every number of
                seconds is allowed (clamped to max_offset_s), not only config.offsets_s.

        The modes: unconditioned asks with outcome -1 and offset -1; outcome with an outcome and
        offset -1; multi_token with both.
        """
        e_BED: Tensor = self.output(h_BD, outcome_BE, surface_BE, offset_s_BE)
        return e_BED

    def rank(
        self,
        item_BCD: Tensor,
        surface_BC: Tensor,
        timestamp_BC: Tensor,
        previous_BC: Tensor,
        cache: KVCache,
        length_BC: Tensor | None = None,
    ) -> Tensor:
        """Log-odds [B, C, O] that a candidate, once shown, meets with each engaging action.

        Args:
            item_BCD: item vectors of the candidates.
            surface_BC, timestamp_BC, previous_BC: where and when each is shown, and the time of the event before, as
                in `tokens`; [B, 1] where all of a row are shown at once.
            cache, length_BC: the histories, and how much each candidate sees of them; see `Backbone.attend`.
        """
        assert self.ranking is not None
        x_BCD = self.tokens(item_BCD, torch.full_like(surface_BC, UNKNOWN), surface_BC, timestamp_BC, previous_BC)
        logit_BCO: Tensor = self.ranking(self.backbone.attend(x_BCD, cache, length_BC))
        return logit_BCO
