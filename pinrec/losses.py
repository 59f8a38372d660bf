"""The training losses: sampled softmax with logQ correction and intra-feed relaxation, and the exact softmax.

Shapes: M predictions, A admissible positives of each, P items of the shared pool, N items of the catalogue, D width.
"""

from collections.abc import Iterator
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional as F

EXACT_BLOCK: Final = 256  # predictions whose scores of all items fit the cache
SAMPLED_BLOCK: Final = 256  # the same for a pool of negatives
MULTIPLIES_BFLOAT16: Final = ("avx512_bf16", "amx_bf16", "bf16")  # capabilities of x86 and ARM processors
EXCLUDED: Final = -1e4  # as good as minus infinity, and faster: exp takes its slow path for infinities


def sampled_softmax(
    e_MD: Tensor,
    positive_MAD: Tensor,
    admissible_MA: Tensor,
    pool_PD: Tensor,
    log_weight_P: Tensor,
    left_out_MP: Tensor,
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
        left_out_MP: pool items that are no negatives of the prediction: its own positives, and what did not exist yet.
        temperature: scalar.
    """
    score_MA = torch.einsum("md,mad->ma", e_MD, positive_MAD) / temperature
    best_M = score_MA.masked_fill(~admissible_MA, -torch.inf).amax(1)
    others_M: Tensor = _LogSumExp.apply(e_MD / temperature, pool_PD, log_weight_P, left_out_MP)  # type: ignore[no-untyped-call]
    return F.softplus(others_M - best_M)


class _LogSumExp(torch.autograd.Function):
    """log of the sum over the pool of exp(<e, x_p> + log w_p), without what is left out, float32[M].

    The M x P scores are never all in memory, and none is kept: the backward pass makes those of a block again, while
    they are in the processor's cache. To make them twice costs less than to write and read them once.
    """

    @staticmethod
    def forward(ctx: Any, e_MD: Tensor, pool_PD: Tensor, log_weight_P: Tensor, left_out_MP: Tensor) -> Tensor:
        sum_M = e_MD.new_empty(len(e_MD))
        for rows in _blocks(e_MD):
            score = _scores(e_MD[rows], pool_PD, log_weight_P, left_out_MP[rows])
            largest = score.amax(1, keepdim=True)
            sum_M[rows] = score.sub_(largest).exp_().sum(1).log_().add_(largest[:, 0])
        ctx.save_for_backward(e_MD, pool_PD, log_weight_P, left_out_MP, sum_M)
        return sum_M

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Any:
        e_MD, pool_PD, log_weight_P, left_out_MP, sum_M = ctx.saved_tensors
        by_e, by_pool = torch.empty_like(e_MD), torch.zeros_like(pool_PD)
        for rows in _blocks(e_MD):
            share = _scores(e_MD[rows], pool_PD, log_weight_P, left_out_MP[rows]).sub_(sum_M[rows, None]).exp_()
            share.mul_(upstream[0][rows, None])
            torch.mm(share, pool_PD, out=by_e[rows])
            by_pool.addmm_(share.T, e_MD[rows])
        return by_e, by_pool, None, None


def _blocks(e_MD: Tensor) -> Iterator[slice]:
    """Predictions to be looked at together; a GPU has them all at once."""
    size = max(1, len(e_MD)) if e_MD.is_cuda else SAMPLED_BLOCK
    return (slice(at, at + size) for at in range(0, len(e_MD), size))


def _scores(e_BD: Tensor, pool_PD: Tensor, log_weight_P: Tensor, left_out_BP: Tensor) -> Tensor:
    return torch.addmm(log_weight_P, e_BD, pool_PD.T).masked_fill_(left_out_BP, EXCLUDED)


def refused_softmax(
    e_MD: Tensor,
    positive_MAD: Tensor,
    admissible_MA: Tensor,
    refused_MRD: Tensor,
    there_MR: Tensor,
    temperature: Tensor,
) -> Tensor:
    """Loss of the best positive among itself and what the user was shown and refused, float32[M]; 0 without refusals.

    These are the extra hard negatives of fine-tuning (method: impression negatives). They stand in a softmax of their
    own: they are each user's, so no sampling probability would put them on the scale of the others.
    """
    best_M = (torch.einsum("md,mad->ma", e_MD, positive_MAD) / temperature).masked_fill(~admissible_MA, -torch.inf)
    refused_MR = torch.einsum("md,mrd->mr", e_MD, refused_MRD) / temperature
    others_M = refused_MR.masked_fill(~there_MR, EXCLUDED).logsumexp(1)
    return F.softplus(others_M - best_M.amax(1))


def exact_softmax(
    e_MD: Tensor,
    table_ND: Tensor,
    target_M: Tensor,
    scale: Tensor | float = 1.0,
    low_precision: bool = True,
    dates: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Mean cross entropy of the targets among all N items, a scalar, with scores <e, x> * scale.

    The M x N scores are never all in memory: a block of predictions at a time, whose gradient is taken while it is
    still in the processor's cache. Three to six times as fast as `F.cross_entropy` on a CPU.

    Args:
        e_MD, table_ND: predictions and items, float32.
        target_M: int64, rows of the table.
        scale: 1 / temperature; a scalar tensor is differentiated.
        low_precision: matrix products of bfloat16, with sums in float32, where the processor has instructions for them:
            without, they take several times as long as those of float32.
        dates: float64 epoch seconds [N], since when each item was there, and [M], when each target was chosen: newer
            items are left out, the target apart. None = all items were always there.
    """
    scale = torch.as_tensor(scale, dtype=e_MD.dtype, device=e_MD.device)
    loss: Tensor = _ExactSoftmax.apply(  # type: ignore[no-untyped-call]
        e_MD, table_ND, target_M, scale, low_precision, dates
    )
    return loss


def _multiplies_bfloat16(x: Tensor) -> bool:
    """Whether what computes with this tensor has instructions for bfloat16; a GPU has."""
    processor = torch.cpu.get_capabilities()
    return x.is_cuda or any(processor.get(name, False) for name in MULTIPLIES_BFLOAT16)


class _ExactSoftmax(torch.autograd.Function):
    """Takes the gradients in the forward pass; the backward pass only scales them."""

    @staticmethod
    def forward(
        ctx: Any,
        e_MD: Tensor,
        table_ND: Tensor,
        target_M: Tensor,
        scale: Tensor,
        low_precision: bool,
        dates: tuple[Tensor, Tensor] | None,
    ) -> Tensor:
        kind = torch.bfloat16 if low_precision and _multiplies_bfloat16(e_MD) else e_MD.dtype
        e, table = e_MD.to(kind), table_ND.to(kind)
        table_DN = table.T.contiguous()
        loss, gradient_scale = e_MD.new_zeros(()), e_MD.new_zeros(())
        gradient_MD, gradient_ND = torch.empty_like(e_MD), torch.zeros_like(table_ND)
        for at in range(0, len(e), EXACT_BLOCK):
            rows = slice(at, at + EXACT_BLOCK)
            x, y = e[rows], target_M[rows, None]
            score = (x @ table_DN).to(e_MD.dtype) * scale
            hit = score.gather(1, y)
            if dates is not None:
                score.masked_fill_(dates[0] > dates[1][rows, None], EXCLUDED).scatter_(1, y, hit)
            largest = score.amax(1, keepdim=True)
            share = score.sub_(largest).exp_()
            total = share.sum(1, keepdim=True)
            loss += (total.log() + largest - hit).sum()
            share.div_(total).scatter_add_(1, y, torch.full_like(hit, -1.0))
            low = share.to(kind)
            gradient_MD[rows] = (low @ table).to(e_MD.dtype)
            gradient_ND += (low.T @ x).to(e_MD.dtype)
            # d loss / d scale = sum of share * <e, x>, and <e, sum of share * x> is the same sum.
            gradient_scale += (gradient_MD[rows] * e_MD[rows]).sum()
        m = max(1, len(e))
        ctx.save_for_backward(gradient_MD.mul_(scale / m), gradient_ND.mul_(scale / m), gradient_scale.div_(m))
        return loss / m

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Any:
        by_e, by_table, by_scale = ctx.saved_tensors
        return by_e * upstream[0], by_table * upstream[0], None, by_scale * upstream[0], None, None
