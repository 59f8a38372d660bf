"""The forward pass for few tokens on a CPU, by `pinrec.kernels`.

Shapes: see `pinrec.fused`.
"""

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from pinrec.arena import PagedCache
from pinrec.backbone import KVCache

if TYPE_CHECKING:
    from pinrec.fused import FusedModel

MOST: Final = 512
"""Tokens, or embeddings: of more, torch's matrix products make up for what its calls cost."""


class FewTokens:
    """The matrices of a `FusedModel` with inputs as rows, and what is made with them.

    `tokens`, `extend` and `head` are those of the model: same arguments, same results.
    """

    def __init__(self, model: "FusedModel") -> None:
        # Compiled here, where there is a model to run, and not for who only imports this.
        from pinrec import kernels  # noqa: PLC0415

        self._kernels = kernels
        self._kept = {torch.float32: kernels.FLOAT32, torch.bfloat16: kernels.BFLOAT16, torch.int8: kernels.INT8}
        blocks, tokens, head = model.blocks, model.of_tokens, model.of_head
        self._weights = tuple(
            _array(torch.stack(matrices))
            for matrices in (
                [block.first.t() for block in blocks],
                [block.out for block in blocks],
                [block.both.t() for block in blocks],
                [block.down for block in blocks],
            )
        )
        self._window_Y = np.array([model.config.window_of(layer) for layer in range(model.config.layers)])
        self._bias_YO, self._norm_D = _array(torch.stack([block.bias for block in blocks])), _array(model.norm_D)
        self._surfaces, self._head_surfaces = tokens.surfaces, head.surfaces
        self._of_tokens = (
            _array(tokens.matrix), _array(tokens.pair_QD), _array(tokens.period_3), *_times(tokens.log),
            _array(tokens.no_previous_F),
        )  # fmt: skip
        first, second = (layer for layer in head.offset if isinstance(layer, nn.Linear))
        self._of_head = (
            tuple(_array(weight.t()) for weight in (head.state, first.weight, second.weight, head.out)),
            tuple(_array(bias) for bias in (head.state_bias, first.bias, second.bias, head.out_bias)),
            _array(head.pair_QF), _array(head.no_offset_F), *_times(head.log),
        )  # fmt: skip

    def tokens(
        self, item_BLD: Tensor, action_BL: Tensor, surface_BL: Tensor, timestamp_BL: Tensor, previous_BL: Tensor
    ) -> Tensor:
        """See `PinRecModel.tokens`."""
        pair_BL = (action_BL + 1) * self._surfaces + surface_BL
        flat = (_array(x.reshape(-1)) for x in (pair_BL, timestamp_BL, previous_BL))
        made = self._kernels.tokens(_array(item_BLD.reshape(-1, item_BLD.shape[-1])), *flat, *self._of_tokens)
        return torch.from_numpy(made).view(item_BLD.shape)

    def extend(self, x_BND: Tensor, cache: KVCache, kept: torch.dtype, angles: tuple[Tensor, Tensor]) -> Tensor:
        """See `Backbone.extend`; the cache must have room, and does not grow."""
        at = _Cache(cache)
        made = self._kernels.extend(
            _array(x_BND), *at.pages, at.key, at.value, at.steps, cache.length_B.numpy(), self._weights, self._bias_YO,
            self._norm_D, *(angle_PK.numpy() for angle_PK in angles), self._kept[kept], self._window_Y,
        )  # fmt: skip
        return torch.from_numpy(made)

    def head(self, h_BD: Tensor, outcome_BE: Tensor, surface_BE: Tensor, offset_s_BE: Tensor) -> Tensor:
        """See `PinRecModel.head`."""
        pair_BE = (outcome_BE + 1) * self._head_surfaces + (surface_BE + 1)
        return torch.from_numpy(
            self._kernels.head(_array(h_BD), _array(pair_BE), _array(offset_s_BE.float()), *self._of_head)
        )


class _Cache:
    """Keys and values as the kernel takes them: rows and heads are one dimension, whichever of them comes first."""

    def __init__(self, cache: KVCache) -> None:
        if isinstance(cache, PagedCache) and cache.pages is not None:
            self.pages, (self.key, self.value), self.steps = cache.pages, cache.own, (cache.heads, 1)
            return
        _, rows, heads, capacity, width = cache.key.shape
        turned = cache.key.transpose(1, 2), cache.value.transpose(1, 2)
        if all(x.is_contiguous() for x in turned):
            both, self.steps = turned, (1, rows)
        else:
            cache.key, cache.value = cache.key.contiguous(), cache.value.contiguous()
            both, self.steps = (cache.key, cache.value), (heads, 1)
        self.key, self.value = (x.view(len(x), rows * heads, capacity, width).numpy() for x in both)
        shape = len(cache.key), heads, 1
        nowhere = np.zeros((*shape, width, 1), np.uint16), np.zeros((*shape, 1, width), np.uint16)
        unscaled = np.zeros((2, *shape[:2], 0, 1), np.uint16)
        self.pages = nowhere, unscaled, np.zeros((rows, 1), np.int64), np.zeros(rows, np.int64)


def _array(x: Tensor) -> np.ndarray:
    array: np.ndarray = x.detach().contiguous().numpy()
    return array


def _times(log: Any) -> tuple[float, np.ndarray, np.ndarray]:
    return float(log.max_s), _array(log.frequency_F), _array(log.phase_F)
