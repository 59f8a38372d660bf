"""Windows of users' histories and what is to be predicted at each of their positions.

All by index arithmetic over events sorted once by (user, timestamp, row): no loop over users.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pinrec.config import Vocabulary
from pinrec.dataset import EventColumns

LOOKAHEAD: Final = 8
REFUSED: Final = 4  # impressions without engagement that stand as negatives of one prediction
Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Targets:
    """What M predictions aim at. Events are positions in the sorted events.

    Attributes:
        asked: int64[M], which of the positions that were asked about the prediction is made at.
        target: int64[M], the engaged event it aims at.
        admissible: int64[M, A], events that count as well as the target (itself first), -1 padded.
    """

    asked: Indices
    target: Indices
    admissible: Indices

    def at(self, which: NDArray[np.bool_]) -> "Targets":
        """Some of the predictions."""
        return Targets(self.asked[which], self.target[which], self.admissible[which])


class Windows:
    """Events by user, in time order, and the engaged events ahead of each.

    An engaged event on an item is a target of a position if neither it nor anything else of the same user on
    the same item stands at or before that position: one exposure often gives several events (shown, click,
    like), and once one of them is in the history the others are no discovery.
    """

    def __init__(self, events: EventColumns, vocabulary: Vocabulary) -> None:
        n = len(events)
        self.order = np.lexsort((events.timestamp, events.user))
        self.user = events.user[self.order]
        self.timestamp = events.timestamp[self.order]
        self.feed = events.feed[self.order]
        self.action = events.action[self.order].astype(np.int64)
        users = np.arange(len(events.user_ids))
        self.start = np.searchsorted(self.user, users)
        self.end = np.searchsorted(self.user, users, side="right")
        # The first position of the same user and item.
        hashes = events.item_hash[self.order]
        by_item = np.lexsort((hashes, self.user))
        opens = np.ones(n, np.bool_)
        opens[1:] = (self.user[by_item][1:] != self.user[by_item][:-1]) | (hashes[by_item][1:] != hashes[by_item][:-1])
        first = np.empty(n, np.int64)
        first[by_item] = by_item[np.flatnonzero(opens)[np.cumsum(opens) - 1]] if n else by_item
        # Shown and never engaged with: the items of non-engaging events of users who left them at that.
        item_number = np.empty(n, np.int64)
        item_number[by_item] = np.cumsum(opens) - 1
        wanted = np.zeros(n, np.bool_)
        wanted[item_number[events.engaged(vocabulary)[self.order]]] = True
        self._refused = np.flatnonzero(~wanted[item_number] & ~events.is_query[self.order])
        # Targets in the order in which their items first appear; those of one item stand together.
        engaged = np.flatnonzero(events.engaged(vocabulary)[self.order])
        ranked = np.lexsort((engaged, first[engaged]))
        self._target = engaged[ranked]
        self._first = first[self._target]

    def __len__(self) -> int:
        return len(self.order)

    def predictable(self, rows: slice) -> bool:
        """Whether any user with an event at the given rows has anything to predict."""
        some = np.zeros(len(self.start), np.bool_)
        ahead = self._first > self.start[self.user[self._target]]
        some[self.user[self._target[ahead]]] = True
        return bool(some[self.user[self._at(rows)]].any())

    def epoch(self, rng: np.random.Generator, length: int, rows: slice) -> tuple[Indices, Indices]:
        """Windows [lo, hi) of at most `length` events that cover each event at the given rows about once.

        A user with n such events gives ceil(n / length) windows, each around a random one of them.
        """
        new = np.flatnonzero(self._at(rows))
        users, starts, counts = np.unique(self.user[new], return_index=True, return_counts=True)
        draws = -(-counts // length)
        owner = np.repeat(np.arange(len(users)), draws)
        end = new[starts[owner] + rng.integers(0, counts[owner])]
        lo = np.maximum(self.start[users[owner]], end - length + 1)
        hi = np.minimum(self.end[users[owner]], lo + length)
        return lo, hi

    def targets(
        self, rng: np.random.Generator, source: Indices, later: int, max_offset_s: float, relax: bool
    ) -> Targets:
        """Targets of the positions `source`: of the next engaged item, and `later` more of the events behind it.

        Args:
            rng: which of several events on the next item, and which later events.
            source: int64[n] positions.
            later: further predictions for each position, drawn from the next LOOKAHEAD engaged events.
            max_offset_s: later events further away than this are left out.
            relax: admit other events of the target's feed view with the same action (intra-feed relaxation).
        """
        if not len(self._target) or not len(source):
            none = np.zeros(0, np.int64)
            return Targets(none, none, np.zeros((0, 1), np.int64))
        head = np.searchsorted(self._first, source, side="right")
        asked = np.flatnonzero(self._of_same_user(head, source))
        head = head[asked]
        group = np.searchsorted(self._first, self._first[head], side="right") - head
        ranks = [head + (rng.random(len(head)) * group).astype(np.int64)]
        ranks += [head + rng.integers(0, LOOKAHEAD, len(head)) for _ in range(later)]
        rank, heads, asked = np.concatenate(ranks), np.tile(head, later + 1), np.tile(asked, later + 1)
        keep = self._of_same_user(rank, source[asked])
        target = self._target[np.minimum(rank, len(self._target) - 1)]
        keep[len(head) :] &= (self.timestamp[target] - self.timestamp[source[asked]] <= max_offset_s)[len(head) :]
        asked, target, heads = asked[keep], target[keep], heads[keep]
        admissible = target[:, None]
        if relax and (self.feed[target] >= 0).any():
            others = heads[:, None] + np.arange(LOOKAHEAD)
            of_user = self._of_same_user(others, target[:, None])
            others = self._target[np.minimum(others, len(self._target) - 1)]
            feed, action = self.feed[target][:, None], self.action[target][:, None]
            same = of_user & (feed >= 0) & (self.feed[others] == feed) & (self.action[others] == action)
            admissible = np.concatenate((admissible, np.where(same, others, -1)), 1)
        return Targets(asked, target, admissible)

    def refused(self, source: Indices) -> Indices:
        """The next REFUSED items that the user is shown after each position and never engages with.

        Returns:
            int64[n, REFUSED] positions, -1 where there are no more.
        """
        rank = np.searchsorted(self._refused, source, side="right")[:, None] + np.arange(REFUSED)
        if not len(self._refused):
            return np.full(rank.shape, -1)
        shown = self._refused[np.minimum(rank, len(self._refused) - 1)]
        there = (rank < len(self._refused)) & (self.user[shown] == self.user[source][:, None])
        return np.where(there, shown, -1)

    def _at(self, rows: slice) -> NDArray[np.bool_]:
        """Which positions hold events at the rows, bool[n]."""
        start, stop, _ = rows.indices(len(self))
        at: NDArray[np.bool_] = (self.order >= start) & (self.order < stop)
        return at

    def _of_same_user(self, rank: Indices, position: Indices) -> NDArray[np.bool_]:
        """Whether there is a target of this rank and it is of the same user as `position`."""
        target = self._target[np.minimum(rank, len(self._target) - 1)]
        same: NDArray[np.bool_] = (rank < len(self._target)) & (self.user[target] == self.user[position])
        return same
