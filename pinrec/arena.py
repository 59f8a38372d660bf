"""Memory for the keys and values of many histories, in blocks of a fixed size.

Shapes: N blocks, Y layers, H heads, P positions of a block, K width of a head, B rows, L positions, T positions in a
row of their own.
"""

from typing import Final

import numpy as np
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
        # Zeros, not whatever lies there: what is masked is still multiplied by 0, which NaN survives. One block more is
        # nobody's: room to grow is made of it. Keys lie turned round: the kernels score a page's positions side by
        # side.
        shape = layers, heads, self.blocks + 1
        self._key_YHNKP = torch.zeros(*shape, width, POSITIONS, dtype=dtype)
        self._value_YHNPK = torch.zeros(*shape, POSITIONS, width, dtype=dtype)
        self._scale_2YHNP = torch.zeros(2, *shape, POSITIONS, dtype=torch.bfloat16) if dtype == torch.int8 else None
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
        """A cache of the rows that hold these blocks, with `room` free positions behind each.

        Blocks of bfloat16 and int8 are read where they lie (`PagedCache`), others are copied: what is kept of a row
        must not change, but behind its `length_B`, as long as the cache is used.

        Args:
            held: blocks of each row, in order.
            length_B: int64, positions of each row; what its blocks hold beyond is never read.
        """
        if self.dtype != torch.float32:
            return PagedCache(self, held, length_B, room)
        return KVCache(*self.copied(self.index(held, length_B, room)), length_B.clone())

    def index(self, held: list[list[int]], length_B: Tensor, room: int = 0) -> np.ndarray:
        """int64[B, M], the blocks of each row, and behind them nobody's, for its positions and so many more."""
        most = -(-(int(length_B.max()) + room + ROOM) // POSITIONS)
        index_BM = np.full((len(held), max(most, *map(len, held))), self.blocks)
        for row_M, blocks in zip(index_BM, held, strict=True):
            row_M[: len(blocks)] = blocks
        return index_BM

    def copied(self, index_BM: np.ndarray) -> tuple[Tensor, Tensor]:
        """Keys and values (float32) of these blocks, [Y, B, H, M P, K] each."""
        layers, heads, width = self.shape
        rows, most = index_BM.shape
        block_T = torch.from_numpy(index_BM).flatten()
        key_YHTPK = _picked(self._key_YHNKP, block_T).transpose(3, 4)
        value_YHTPK = _picked(self._value_YHNPK, block_T)
        if self._scale_2YHNP is not None:
            key_YHTPK, value_YHTPK = (
                found * _picked(scale, block_T)[..., None]
                for found, scale in zip((key_YHTPK, value_YHTPK), self._scale_2YHNP, strict=True)
            )
        shape = layers, heads, rows, most * POSITIONS, width
        return key_YHTPK.reshape(shape).transpose(1, 2), value_YHTPK.reshape(shape).transpose(1, 2)

    @property
    def _both(self) -> tuple[Tensor, Tensor]:
        """Keys and values, [Y, H, N, P, K] each."""
        return self._key_YHNKP.transpose(3, 4), self._value_YHNPK

    @property
    def pages(self) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray]:
        """Keys [Y, H, N, K, P] and values [Y, H, N, P, K] where they lie, and scales [2, Y, H, N or 0, P].

        Numbers are int8, or bfloat16 as uint16; so are the scales, which only int8 has.
        """
        scale_2YHNP = self._scale_2YHNP
        if scale_2YHNP is None:
            keys, values = (memory.view(torch.uint16).numpy() for memory in (self._key_YHNKP, self._value_YHNPK))
            return (keys, values), np.zeros((2, *self.shape[:2], 0, POSITIONS), np.uint16)
        both = self._key_YHNKP.numpy(), self._value_YHNPK.numpy()
        return both, scale_2YHNP.view(torch.uint16).numpy()

    def store(self, held: list[list[int]], cache: KVCache, since: list[int], until: list[int]) -> None:
        """Keep the positions [since, until) of the cache's rows in the blocks that the rows hold."""
        rows = [row for row, (lo, hi) in enumerate(zip(since, until, strict=True)) for _ in range(lo, hi)]
        at = [at for lo, hi in zip(since, until, strict=True) for at in range(lo, hi)]
        if not at:
            return
        row_T, at_T = torch.tensor(rows), torch.tensor(at)
        block_T = torch.tensor([held[row][position // POSITIONS] for row, position in zip(rows, at, strict=True)])
        for number, memory in enumerate(self._both):
            new_YHTK = cache.new(number, row_T, at_T)
            if self._scale_2YHNP is not None:
                scale_YHT1 = scales(new_YHTK)
                self._scale_2YHNP[number][:, :, block_T, at_T % POSITIONS] = scale_YHT1[..., 0].bfloat16()
                new_YHTK = (new_YHTK / scale_YHT1).round_()
            memory[:, :, block_T, at_T % POSITIONS] = new_YHTK.to(self.dtype)


class PagedCache(KVCache):
    """A cache whose rows begin in an arena's blocks and go on in memory of their own.

    Whoever asks for `key` or `value` gets all of it in one piece; from then on it is an ordinary cache.

    Attributes:
        pages: what the kernels read: the arena's memories and scales, int64[B, M] blocks, int64[B] positions in them;
            None = the cache is in one piece.
        own: keys and values float32[Y, B H, C, K] behind the pages.
    """

    def __init__(self, arena: Arena, held: list[list[int]], length_B: Tensor, room: int) -> None:
        self._arena, self._held = arena, held
        self._paged_B, self.length_B = length_B.clone(), length_B.clone()
        self.longest = int(length_B.max())
        layers, self.heads, width = arena.shape
        shape = layers, len(held) * self.heads, room + ROOM, width
        self.own = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
        self.pages: tuple[tuple[np.ndarray, np.ndarray], np.ndarray, np.ndarray, np.ndarray] | None = (
            *arena.pages, arena.index(held, length_B), self._paged_B.numpy(),
        )  # fmt: skip

    @property
    def key(self) -> Tensor:
        """Of all positions."""
        return self._whole()[0]

    @key.setter
    def key(self, key_YBHCK: Tensor) -> None:
        self._both = key_YBHCK, self._whole()[1]

    @property
    def value(self) -> Tensor:
        """Of all positions."""
        return self._whole()[1]

    @value.setter
    def value(self, value_YBHCK: Tensor) -> None:
        self._both = self._whole()[0], value_YBHCK

    def reserve(self, more: int) -> None:
        """Make room for at least `more` positions behind each row."""
        if self.pages is None:
            super().reserve(more)
            return
        needed = int((self.length_B - self._paged_B).max()) + more
        if needed > self.own[0].shape[2]:
            pad = (0, 0), (0, 0), (0, needed + ROOM - self.own[0].shape[2]), (0, 0)
            self.own = np.pad(self.own[0], pad), np.pad(self.own[1], pad)

    def new(self, number: int, row_T: Tensor, at_T: Tensor) -> Tensor:
        """Keys (0) or values (1) of positions behind the pages, [Y, H, T, K]."""
        if self.pages is None:
            return super().new(number, row_T, at_T)
        own_YBHCK = self._rows(self.own[number])
        return own_YBHCK[:, row_T, :, at_T - self._paged_B[row_T]].permute(1, 2, 0, 3)

    def _rows(self, own_YSCK: np.ndarray) -> Tensor:
        layers, _, capacity, width = own_YSCK.shape
        return torch.from_numpy(own_YSCK).view(layers, len(self._held), self.heads, capacity, width)

    def _whole(self) -> tuple[Tensor, Tensor]:
        if self.pages is not None:
            own = self.own[0].shape[2]
            both = self._arena.copied(self._arena.index(self._held, self._paged_B, own))
            for whole_YBHCK, own_YSCK in zip(both, self.own, strict=True):
                own_YBHCK = self._rows(own_YSCK)
                for b, at in enumerate(self._paged_B.tolist()):
                    whole_YBHCK[:, b, :, at : at + own] = own_YBHCK[:, b]
            self._both, self.pages = both, None
        return self._both


def _picked(memory_YHN: Tensor, block_T: Tensor) -> Tensor:
    """float32[Y, H, T, ...]: some blocks of a memory, each picked as one run of numbers."""
    layers, heads, _, *of_one = memory_YHN.shape
    runs = memory_YHN.flatten(0, 1).flatten(2).index_select(1, block_T)
    return runs.float().view(layers, heads, len(block_T), *of_one)
