"""The work for one batch of requests: from histories to the embeddings of all steps, captured once on a GPU.

Shapes: B requests, L events, D width, E embeddings of a step, N items.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.untrained import untrained
from pinrec.config import ModelConfig, Vocabulary
from pinrec.generation import Aims, Moment, generated
from pinrec.model import previous_timestamps

NOW: Final = 1_767_225_600.0
_OUTCOMES: Final = ("click", "save")
_WARM_UPS: Final = 3


@dataclass(frozen=True)
class Request:
    """One history, right-padded; the first `length` events count.

    Attributes:
        item, action, surface: int64[L], catalogue rows and vocabulary indices.
        timestamp: float64[L], epoch s.
    """

    item: np.ndarray
    action: np.ndarray
    surface: np.ndarray
    timestamp: np.ndarray
    length: int


def random_request(rng: np.random.Generator, items: int, events: int, vocabulary: Vocabulary) -> Request:
    """A user with so many events, a minute apart."""
    return Request(
        rng.integers(items, size=events),
        rng.integers(len(vocabulary.actions), size=events),
        rng.integers(len(vocabulary.surfaces), size=events),
        NOW - 60.0 * np.arange(events, 0, -1),
        events,
    )


class LargeModel:
    """Random weights and item vectors on a device; matrices are kept in bfloat16, and so are products of them."""

    def __init__(self, config: ModelConfig, items: int, device: torch.device) -> None:
        self.config, self.vocabulary, self.device = config, Vocabulary(), device
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.model = untrained(config, self.vocabulary).requires_grad_(False)
            self.table_ND = nn.functional.normalize(torch.randn(items, config.width), dim=-1).to(device)
        for module in self.model.modules():
            if isinstance(module, nn.Linear):
                module.to(torch.bfloat16)
        self.model.to(device)
        actions = [self.vocabulary.action_index[name] for name in _OUTCOMES]
        self.outcome_E = torch.tensor(actions, device=device).repeat_interleave(len(config.offsets_s))
        self.offset_E = torch.tensor(config.offsets_s, dtype=torch.float64, device=device).repeat(len(actions))

    @property
    def embeddings(self) -> int:
        """E."""
        return len(self.outcome_E)


class Batch:
    """The work for at most `size` requests at once.

    Args:
        graph: capture it as a CUDA graph, which one call then runs; only on a GPU.
    """

    def __init__(self, large: LargeModel, size: int, events: int, steps: int, graph: bool) -> None:
        self._large, self._steps, self.size = large, steps, size
        self._index_3BL = torch.zeros(3, size, events, dtype=torch.int64, device=large.device)
        self._timestamp_BL = torch.full((size, events), NOW - 1, dtype=torch.float64, device=large.device)
        self._length_B = torch.ones(size, dtype=torch.int64, device=large.device)
        self._graph: torch.cuda.CUDAGraph | None = None
        if graph:
            self._capture()

    def __call__(self, requests: Sequence[Request]) -> Tensor:
        """float32[len(requests), steps x E, D], in the computer's own memory."""
        assert 0 < len(requests) <= self.size
        indices = np.stack([[r.item, r.action, r.surface] for r in requests], 1)
        some = slice(0, len(requests))
        self._index_3BL[:, some] = torch.from_numpy(indices).to(self._large.device)
        self._timestamp_BL[some] = torch.from_numpy(np.stack([r.timestamp for r in requests])).to(self._large.device)
        self._length_B[some] = torch.tensor([r.length for r in requests]).to(self._large.device)
        if self._graph is None:
            made_BED = self._work()
        else:
            self._graph.replay()
            made_BED = self._made_BED
        return made_BED[some].cpu()

    def _capture(self) -> None:
        # Libraries choose their kernels and ask for their memory in the first calls, which a graph must not hold.
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(_WARM_UPS):
                self._work()
        torch.cuda.current_stream().wait_stream(aside)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._made_BED = self._work()

    @torch.no_grad()
    def _work(self) -> Tensor:
        large, model = self._large, self._large.model
        # Casts that are remembered would be of the first call's tensors, which a graph's replay does not have.
        with torch.autocast(large.device.type, torch.bfloat16, cache_enabled=False):
            item_BL, action_BL, surface_BL = self._index_3BL
            x_BLD = model.tokens(
                large.table_ND[item_BL],
                action_BL,
                surface_BL,
                self._timestamp_BL,
                previous_timestamps(self._timestamp_BL),
            )
            h_BLD, cache = model.prefill(x_BLD, self._length_B, torch.bfloat16)
            cache.key, cache.value = cache.key.bfloat16(), cache.value.bfloat16()
            row_B, last_B = torch.arange(self.size, device=large.device), self._length_B - 1
            now_B = torch.full_like(self._timestamp_BL[:, 0], NOW)
            surface_B = surface_BL[row_B, last_B]
            outcome_SBE = large.outcome_E.expand(self._steps, self.size, -1)
            aims = Aims(
                outcome_SBE,
                surface_B,
                large.offset_E,
                outcome_SBE[:, :, 0],
                int(np.argmin(large.config.offsets_s)),
            )
            moment = Moment(self._timestamp_BL[row_B, last_B], now_B, surface_B)
            return generated(model, h_BLD[row_B, last_B], cache, moment, aims).float()
