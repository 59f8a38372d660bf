"""One fit on several processes: each takes its windows of every batch, and all make the same step.

Every rank draws the same batch from the same generator, so negatives, frequencies and dropped conditions are those of
one process with a batch as large as all ranks' together; only the passes through the model are divided.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import Parameter

Group = dist.ProcessGroup


class Share:
    """What is this process's of a batch: every `ranks`-th window, so that all get windows of like lengths.

    Args:
        group: processes that train together, of any backend that sums CPU tensors (gloo); None = this one alone.
    """

    def __init__(self, group: Group | None = None) -> None:
        self._group = group
        self.rank = 0 if group is None else dist.get_rank(group)
        self.ranks = 1 if group is None else dist.get_world_size(group)

    @property
    def windows(self) -> slice:
        """Of a batch, those of this process."""
        return slice(self.rank, None, self.ranks)

    def mine(self, window: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which of the windows, by their numbers in the batch, are of this process."""
        own: NDArray[np.bool_] = window % self.ranks == self.rank
        return own

    def sum_gradients(self, parameters: Sequence[Parameter], loss: Tensor) -> float:
        """Replace each gradient by its sum over the ranks, and return the sum of their losses.

        Tables of embeddings are summed whole. A parameter that no rank has a gradient of keeps none, so that the
        optimiser leaves it as it is.
        """
        if self._group is None:
            return float(loss.detach())
        there = torch.tensor([float(p.grad is not None) for p in parameters])
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        flat = torch.cat([loss.detach().reshape(1), there, *(gradient.reshape(-1) for gradient in gradients)])
        dist.all_reduce(flat, group=self._group)
        total, anywhere, *summed = torch.split(flat, [1, len(parameters), *(p.numel() for p in parameters)])
        for parameter, held, gradient in zip(parameters, anywhere.tolist(), summed, strict=True):
            parameter.grad = gradient.view_as(parameter) if held else None
        return float(total)
