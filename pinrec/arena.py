"""Memory for the keys and values of many histories, in blocks of a fixed size.

Shapes: N blocks, Y layers, H heads, P positions of a block, K width of a head, B rows, L positions, T positions in a
row of their own.
"""

from typing import Final

import torch
from torch import Tensor

from pinrec.backbone import ROOM, KVCache
from pinrec.config import ModelConfig

POSITIONS: Final = 32
"""Of one block: what is wasted at a history's end is less than one."""


class Arena:
    """Blocks of keys and values for models of one shape.

    Its memory is asked for at once and touched as it is used, so that the budget is a limit and not the cost.

    Args:
        config: shape of the models.
        budget: bytes.
        dtype: what keys and values are kept in.
    """

    def __init__(self, config: ModelConfig, budget: int, dtype: torch.dtype) -> None:
        self.shape = (config.layers, config.heads, config.width // config.heads)
        self.dtype = dtype
        layers, heads, width = self.shape
        self.block_bytes = 2 * layers * heads * POSITIONS * width * dtype.itemsize
        self.blocks = max(0, budget) // self.block_bytes
        # Zeros, not whatever lies there: what is masked is still multiplied by 0, which NaN survives.
        self._memory_N2YHPK = torch.zeros(self.blocks, 2, layers, heads, POSITIONS, width, dtype=dtype)
        self._free = list(range(self.blocks - 1, -1, -1))

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

    def gather(self, held: list[list[int]], length_B: Tensor, room: int) -> KVCache:
        """A cache (float32, a copy) of the rows that hold these blocks, with `room` free positions behind each.

        Args:
            held: blocks of each row, in order.
            length_B: int64, positions of each row; what its blocks hold beyond is never read.
        """
        layers, heads, width = self.shape
        most = max(map(len, held))
        index_BL = torch.zeros(len(held), most, dtype=torch.int64)
        for row_L, blocks in zip(index_BL, held, strict=True):
            row_L[: len(blocks)] = torch.tensor(blocks, dtype=torch.int64)
        # One pass over what is gathered and one that turns it round and converts it.
        found = self._memory_N2YHPK[index_BL.flatten()].view(len(held), most, 2, layers, heads, POSITIONS, width)
        capacity = most * POSITIONS + max(0, int(length_B.max()) + room + ROOM - most * POSITIONS)
        both = torch.zeros(2, layers, len(held), heads, capacity, width)
        filled = both.narrow(4, 0, most * POSITIONS).view(2, layers, len(held), heads, most, POSITIONS, width)
        filled.copy_(found.permute(2, 3, 0, 4, 1, 5, 6))
        return KVCache(both[0], both[1], length_B.clone())

    def store(self, held: list[list[int]], cache: KVCache, since: list[int], until: list[int]) -> None:
        """Keep the positions [since, until) of the cache's rows in the blocks that the rows hold."""
        rows = [row for row, (lo, hi) in enumerate(zip(since, until, strict=True)) for _ in range(lo, hi)]
        at = [at for lo, hi in zip(since, until, strict=True) for at in range(lo, hi)]
        if not at:
            return
        row_T, at_T = torch.tensor(rows), torch.tensor(at)
        block_T = torch.tensor([held[row][position // POSITIONS] for row, position in zip(rows, at, strict=True)])
        for which, cached in enumerate((cache.key, cache.value)):
            self._memory_N2YHPK[block_T, which, :, :, at_T % POSITIONS] = cached[:, row_T, :, at_T].to(
                self.dtype
            )  # [T, Y, H, K]: indices with a slice between go first
