"""What keys and values are kept in: bfloat16, float32, or int8 with a scale for each head's vector.

They are rounded to it before anything attends to them, so that what is kept and what is computed anew are the same.
"""

from typing import Final

import torch
from torch import Tensor

_LARGEST: Final = 127
_LEAST: Final = 1e-20  # a vector of zeros has a scale too


def scales(x: Tensor) -> Tensor:
    """float32[..., 1]: what the whole numbers of each vector are multiplied by.

    Of eight significant bits, so that 127 times one is exact: vectors that are rounded already have the same again.
    """
    return (x.abs().amax(-1, keepdim=True).clamp_min_(_LEAST) / _LARGEST).bfloat16().float()


def rounded(x: Tensor, kept: torch.dtype) -> Tensor:
    """The vectors [..., K] as they come back from being kept; rounded again, they stay as they are."""
    if kept == x.dtype:
        return x
    if kept == torch.int8:
        scale = scales(x)
        return (x / scale).round_() * scale
    return x.to(kept).to(x.dtype)
