"""The training loss: sampled softmax with logQ correction and intra-feed relaxation.

Shapes: M predictions, A admissible positives of each, P items of the shared pool, D width.
"""

from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F

EXCLUDED: Final = -1e4  # as good as minus infinity, and faster: exp takes its slow path for infinities


def sampled_softmax(
    e_MD: Tensor,
    positive_MAD: Tensor,
    admissible_MA: Tensor,
    pool_PD: Tensor,
    log_weight_P: Tensor,
    hit_MP: Tensor,
    temperature: Tensor,
) -> Tensor:
    """Loss of each prediction, float32[M]: the minimum over its admissible positives.

    With s(x, i) = <x, i> / temperature the loss of positive i is
    -log(exp s(x, i) / (exp s(x, i) + sum over the pool of w_j exp s(x, j))), where w_j = (times j was drawn)
    / (times it is expected to be drawn), the logQ correction. The positive itself is always there, not
    drawn, so its weight is 1: then the denominator's expectation is that of the full softmax. The loss falls
    as s(x, i) grows, so the minimum over positives (method: Intra-feed relaxation) is that of the highest.

    Args:
        e_MD: predicted embeddings, L2-normalised.
        positive_MAD, admissible_MA: vectors of the positives, and which of them are real (at least one each).
        pool_PD, log_weight_P: vectors of distinct pool items and log w.
        hit_MP: pool items that are positives of the prediction: false negatives, left out.
        temperature: scalar.
    """
    score_MA = torch.einsum("md,mad->ma", e_MD, positive_MAD) / temperature
    best_M = score_MA.masked_fill(~admissible_MA, -torch.inf).amax(1)
    negative_MP = torch.addmm(log_weight_P.expand(len(e_MD), -1), e_MD / temperature, pool_PD.T)
    others_M = negative_MP.masked_fill(hit_MP, EXCLUDED).logsumexp(1)
    return F.softplus(others_M - best_M)
