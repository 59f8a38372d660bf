"""Histories as rows of the log, and batches of them padded on the right.

Shapes: S histories, n rows of all of them together, B histories of a batch, T places of its longest.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray

from pinrec.protocols import Cases, Indices, Split, UserLog

SHORTEST: Final = 8  # histories up to this length share a group


@dataclass(frozen=True, eq=False)
class Sequences:
    """S histories, one behind the other, each in the order of the log.

    Attributes:
        row: int64[n], rows of the log.
        start: int64[S + 1], history s is row[start[s]:start[s + 1]].
    """

    row: Indices
    start: Indices

    @classmethod
    def of_training(cls, split: Split) -> Self:
        """What may be trained on, one history for each user of the log; of test users it may be empty."""
        row = np.flatnonzero(split.train)
        users = np.arange(len(split.log.start) + 1)
        return cls(row, np.searchsorted(split.log.events.user[row], users))

    @classmethod
    def of_cases(cls, cases: Cases) -> Self:
        """The history of each case."""
        start = np.concatenate(([0], np.cumsum(cases.hi - cases.lo)))
        return cls(np.arange(start[-1]) + np.repeat(cases.lo - start[:-1], cases.hi - cases.lo), start)

    def engaged(self, log: UserLog) -> Self:
        """Only the engaged items, and of equal ones in a row the first: one exposure can give several events."""
        kept = np.flatnonzero(log.engaged[self.row])
        item, owner = log.item[self.row[kept]], self.owner[kept]
        again = (item[1:] == item[:-1]) & (owner[1:] == owner[:-1])
        kept = kept[np.concatenate(([True], ~again))[: len(kept)]]
        return type(self)(self.row[kept], np.searchsorted(self.owner[kept], np.arange(len(self) + 1)))

    def __len__(self) -> int:
        return len(self.start) - 1

    @cached_property
    def length(self) -> Indices:
        """int64[S]."""
        return np.diff(self.start)

    @cached_property
    def owner(self) -> Indices:
        """int64[n], the history each row belongs to."""
        return np.repeat(np.arange(len(self)), self.length)

    def padded(self, which: Indices, begin: Indices, length: Indices) -> Indices:
        """int64[B, T], `length` rows of the histories `which` from place `begin` on; -1 behind them."""
        place_T = np.arange(length.max(initial=0))
        at_BT = (self.start[which] + begin)[:, None] + place_T
        real_BT = place_T < length[:, None]
        return np.where(real_BT, self.row[np.where(real_BT, at_BT, 0)], -1)

    def last(self, which: Indices, most: int) -> Indices:
        """int64[B, T], at most the `most` last rows of the histories `which`; -1 behind them."""
        length = np.minimum(self.length[which], most)
        return self.padded(which, self.length[which] - length, length)


def by_length(length: Indices) -> list[Indices]:
    """Indices of histories in groups of similar length, so that little of a padded batch is padding."""
    group = np.ceil(np.log2(np.maximum(length, SHORTEST))).astype(np.int64)
    return [np.flatnonzero(group == g) for g in np.unique(group)]


def real_lengths(rows_BT: Indices) -> Indices:
    """int64[B], how many rows are no padding."""
    length: NDArray[np.int64] = (rows_BT >= 0).sum(1)
    return length


def item_counts(log: UserLog, sequences: Sequences) -> Indices:
    """int64[N], how often each catalogue item is in the histories."""
    return np.bincount(log.item[sequences.row], minlength=len(log.catalogue)).astype(np.int64)
