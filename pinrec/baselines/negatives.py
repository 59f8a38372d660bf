"""Negatives shared by all predictions of a step, and the sampled softmax against them.

Shapes: M predictions, P distinct negatives, N items of the catalogue, D width.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pinrec.losses import sampled_softmax
from pinrec.protocols import Indices


@dataclass(frozen=True, eq=False)
class Negatives:
    """Where negatives are drawn from.

    Attributes:
        counts_N: int64[N], how often each item is a target.
        uniform: drawn from the catalogue at each step.
        in_batch: at most so many of a step's own targets are negatives of the others.
        log_q: weigh each by (times drawn) / (times expected), so that the loss estimates that of the full softmax.
    """

    counts_N: Indices
    uniform: int
    in_batch: int = 0
    log_q: bool = True

    def draw(self, rng: np.random.Generator, target_M: Indices) -> tuple[Indices, Tensor]:
        """Distinct catalogue rows int64[P] and the log of their weights, float32[P]."""
        items = len(self.counts_N)
        chosen = rng.permutation(target_M)[: self.in_batch]
        pool, times = np.unique(np.concatenate((chosen, rng.integers(0, items, self.uniform))), return_counts=True)
        weight: NDArray[np.float64] = times.astype(np.float64)
        if self.log_q:
            share = self.counts_N[pool] / max(1, int(self.counts_N.sum()))
            weight /= len(chosen) * share + self.uniform / items
        return pool, torch.as_tensor(np.log(weight).astype(np.float32))

    def loss(
        self,
        rng: np.random.Generator,
        e_MD: Tensor,
        target_M: Indices,
        vectors: Callable[[Indices], Tensor],
        temperature: Tensor,
    ) -> Tensor:
        """Mean sampled softmax of predictions; a negative that is the target itself is left out.

        Args:
            e_MD: predictions, L2-normalised.
            target_M: catalogue rows.
            vectors: L2-normalised vectors [n, D] of n distinct catalogue rows.
        """
        pool, log_weight_P = self.draw(rng, target_M)
        used, place = np.unique(np.concatenate((target_M, pool)), return_inverse=True)
        vector_UD, at = vectors(used), torch.as_tensor(place)
        return sampled_softmax(
            e_MD,
            vector_UD[at[: len(target_M)], None],
            torch.ones(len(target_M), 1, dtype=torch.bool),
            vector_UD[at[len(target_M) :]],
            log_weight_P,
            torch.as_tensor(target_M[:, None] == pool),
            temperature,
        ).mean()
