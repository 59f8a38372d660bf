"""Memory for the keys and values of many histories, in blocks of a fixed size.

Shapes: N blocks, Y layers, H heads, P positions of a block, K width of a head, B rows, L positions, T positions in a
row of their own.
"""

from typing import Final

import torch
from torch import Tensor

from pinrec.backbone import ROOM, KVCache
from pinrec.config import ModelConfig
from pinrec.kept import scales

POSITIONS: Final = 32
"""Of one block: what is wasted at a history's end is less than one."""


class Arena:
    """Blocks of keys and values for models of one shape.

    Its memory is asked for at once and touched as it is used, so that the budget is a limit and not the cost.

    Args:
        config: shape of the models.
        budget: bytes.
        dtype: what keys and values are kept in; see `pinrec.kept`.
    """

    def __init__(self, config: ModelConfig, budget: int, dtype: torch.dtype) -> None:
        self.shape = (config.layers, config.heads, config.width // config.heads)
        self.dtype = dtype
        layers, heads, width = self.shape
        scale_bytes = torch.bfloat16.itemsize if dtype == torch.int8 else 0
        self.block_bytes = 2 * layers * heads * POSITIONS * (width * dtype.itemsize + scale_bytes)
        self.blocks = max(0, budget) // self.block_bytes
        # Zeros, not whatever lies there: what is masked is still multiplied by 0, which NaN survives. Blocks are the
        # second dimension, so that a gathered cache is one contiguous run for each layer and head, and is converted
        # as such: five times as fast as turning it round. One block more is nobody's: room to grow is made of it.
        shape = 2, layers, heads, self.blocks + 1, POSITIONS
        self._memory_2YHNPK = torch.zeros(*shape, width, dtype=dtype)
        self._scale_2YHNP1 = torch.zeros(*shape, 1, dtype=torch.bfloat16) if dtype == torch.int8 else None
        self._free: list[int] = []
        self.reset()

    def fits(self, config: ModelConfig) -> bool:
        """Whether models of this shape can use it."""
        return self.shape == (config.layers, config.heads, config.width // config.heads)

    @property
    def free(self) -> int:
        """Blocks that nobody holds."""
        return len(self._free)

    def take(self, blocks: int) -> list[int]:
        """Blocks for someone to hold; there must be so many free."""
        assert 0 <= blocks <= len(self._free)
        return [self._free.pop() for _ in range(blocks)]

    def give(self, blocks: list[int]) -> None:
        """Take back blocks whose holder no longer needs them."""
        self._free.extend(blocks)

    def reset(self) -> None:
        """Take back all blocks, whoever holds them."""
        self._free = list(range(self.blocks - 1, -1, -1))

    def gather(self, held: list[list[int]], length_B: Tensor, room: int) -> KVCache:
        """A cache (float32, a copy) of the rows that hold these blocks, with `room` free positions behind each.

        Args:
            held: blocks of each row, in order.
            length_B: int64, positions of each row; what its blocks hold beyond is never read.
        """
        layers, heads, width = self.shape
        most = -(-(int(length_B.max()) + room + ROOM) // POSITIONS)
        index_BL = torch.full((len(held), most), self.blocks)
        for row_L, blocks in zip(index_BL, held, strict=True):
            row_L[: len(blocks)] = torch.tensor(blocks, dtype=torch.int64)
        block_T = index_BL.flatten()
        found = _picked(self._memory_2YHNPK, block_T).float()
        if self._scale_2YHNP1 is not None:
            scale = _picked(self._scale_2YHNP1, block_T).float()
            found = found.view(*scale.shape, width) * scale[..., None]
        both = found.view(2, layers, heads, len(held), most * POSITIONS, width).transpose(2, 3)
        return KVCache(both[0], both[1], length_B.clone())

    def store(self, held: list[list[int]], cache: KVCache, since: list[int], until: list[int]) -> None:
        """Keep the positions [since, until) of the cache's rows in the blocks that the rows hold."""
        rows = [row for row, (lo, hi) in enumerate(zip(since, until, strict=True)) for _ in range(lo, hi)]
        at = [at for lo, hi in zip(since, until, strict=True) for at in range(lo, hi)]
        if not at:
            return
        row_T, at_T = torch.tensor(rows), torch.tensor(at)
        block_T = torch.tensor([held[row][position // POSITIONS] for row, position in zip(rows, at, strict=True)])
        for number, cached in enumerate((cache.key, cache.value)):
            new_YHTK = cached[:, row_T, :, at_T].permute(1, 2, 0, 3)  # indices with a slice between them go first
            if self._scale_2YHNP1 is not None:
                scale_YHT1 = scales(new_YHTK)
                self._scale_2YHNP1[number][:, :, block_T, at_T % POSITIONS] = scale_YHT1.bfloat16()
                new_YHTK = (new_YHTK / scale_YHT1).round_()
            self._memory_2YHNPK[number][:, :, block_T, at_T % POSITIONS] = new_YHTK.to(self.dtype)


def _picked(memory_2YHNPK: Tensor, block_T: Tensor) -> Tensor:
    """Some blocks [2YH, T, PK] of a memory."""
    return memory_2YHNPK.flatten(0, 2).flatten(2).index_select(1, block_T)
