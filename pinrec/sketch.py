"""How often an item is a target, in bounded memory: a count-min sketch (Cormode and Muthukrishnan 2005)."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

# Odd multipliers; the high bits of hash x odd number choose the cell (Dietzfelbinger et al. 1997).
_SEED: Final = 0x5D588B656C078965


class CountMinSketch:
    """Decayed frequencies of 64-bit hashes: never under the truth, over it by collisions only.

    Args:
        depth: independent rows of cells; the smallest cell is the answer.
        bits: each row has 2**bits cells.
        decay: what remains of all counts at each `add`; forgets what is no longer popular.
    """

    def __init__(self, depth: int = 4, bits: int = 16, decay: float = 0.999) -> None:
        self._bits, self.decay = bits, decay
        self.counts = np.zeros((depth, 1 << bits), np.float64)
        self.total = 0.0
        self._multipliers = np.random.default_rng(_SEED).integers(0, 2**63, depth, np.uint64) * np.uint64(
            2
        ) + np.uint64(1)

    def _cells(self, hashes: NDArray[np.uint64]) -> NDArray[np.int64]:
        cells = (hashes[None] * self._multipliers[:, None]) >> np.uint64(64 - self._bits)
        return cells.astype(np.int64)

    def add(self, hashes: NDArray[np.uint64]) -> None:
        """Count one occurrence of each of `hashes` [n]; all earlier counts decay once."""
        self.counts *= self.decay
        self.total = self.total * self.decay + len(hashes)
        for row, cells in enumerate(self._cells(hashes)):
            self.counts[row] += np.bincount(cells, minlength=self.counts.shape[1])

    def frequency(self, hashes: NDArray[np.uint64]) -> NDArray[np.float64]:
        """Share of all that was added, [n], in 0..1; 0 before anything was."""
        smallest: NDArray[np.float64] = np.take_along_axis(self.counts, self._cells(hashes), 1).min(0)
        return smallest / self.total if self.total else smallest
