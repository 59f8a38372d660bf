"""Protocols of evaluation: which events are trained on, which are histories, and which are to be found.

Three of them, all over the whole catalogue and without looking at the future:

`leave_one_out`: a user's last event is the test target, the one before it the validation target, the rest is
trained on. At test time the history holds the validation event too.

`by_time`: all is trained on until a moment, and what users engage with after a later one is to be found: items that
appeared in between were never trained on.

`disjoint`: test and validation users are never trained on. The first half of such a user's events is the
history; what the user engages with in the rest, and did not meet before, is to be found.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pinrec.config import Vocabulary
from pinrec.dataset import EventColumns
from pinrec.items import Catalogue

Indices = NDArray[np.int64]
FEWEST: Final = 2  # events of a user that can be split into a history and a future


class ProtocolError(ValueError):
    """A log that a protocol cannot split; the text says what is missing and what to do."""


@dataclass(frozen=True, eq=False)
class UserLog:
    """n events of U users: users one after the other, each user's events by time; equal times keep their order.

    Attributes:
        events: the sorted events; `events.user` ascends.
        item: int64[n], catalogue row of each event; -1 for queries and items the catalogue does not hold.
        start, end: int64[U], each user's events are rows start[u]..end[u].
        engaged: bool[n], engaging actions on catalogue items.
    """

    events: EventColumns
    catalogue: Catalogue
    vocabulary: Vocabulary
    item: Indices
    start: Indices
    end: Indices
    engaged: NDArray[np.bool_]

    @classmethod
    def of(cls, events: EventColumns, catalogue: Catalogue, vocabulary: Vocabulary) -> "UserLog":
        """Sort `events` by user and time."""
        events = events.at(np.lexsort((events.timestamp, events.user)))
        users = np.arange(len(events.user_ids))
        item = catalogue.rows(events.item_hash)
        item[events.is_query] = -1
        return cls(
            events,
            catalogue,
            vocabulary,
            item,
            np.searchsorted(events.user, users),
            np.searchsorted(events.user, users, side="right"),
            events.engaged(vocabulary) & (item >= 0),
        )

    def __len__(self) -> int:
        return len(self.item)


@dataclass(frozen=True, eq=False)
class Cases:
    """B users to be tested. Rows are those of the `UserLog`.

    Attributes:
        user: int64[B], users of the log.
        lo, hi: int64[B], the history is the rows lo..hi; it is never empty.
        targets: B arrays of distinct catalogue rows to be found.
        outcomes: B arrays bool[targets, actions], which actions each target met with.
        seen: B arrays of distinct catalogue rows that must not be retrieved: the history's items.
        actions: names of the actions, in the order of `outcomes`.
    """

    user: Indices
    lo: Indices
    hi: Indices
    targets: list[Indices]
    outcomes: list[NDArray[np.bool_]]
    seen: list[Indices]
    actions: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.user)

    def batches(self, size: int) -> "Iterator[Cases]":
        """Runs of at most `size` cases, in order."""
        for at in range(0, len(self), size):
            yield self.at(np.arange(at, min(at + size, len(self))))

    def at(self, index: Indices) -> "Cases":
        """Some of the cases, in the order of `index`."""
        return Cases(
            self.user[index],
            self.lo[index],
            self.hi[index],
            [self.targets[i] for i in index],
            [self.outcomes[i] for i in index],
            [self.seen[i] for i in index],
            self.actions,
        )

    @cached_property
    def target_count(self) -> int:
        """Targets of all cases together."""
        return sum(map(len, self.targets))


@dataclass(frozen=True, eq=False)
class Split:
    """A log, the rows that may be trained on (bool[n]), and the cases to select and to report on."""

    log: UserLog
    train: NDArray[np.bool_]
    valid: Cases
    test: Cases

    @cached_property
    def training_events(self) -> EventColumns:
        """The events that may be trained on, sorted as in the log."""
        return self.log.events.at(np.flatnonzero(self.train))


def leave_one_out(log: UserLog) -> Split:
    """Train on all but each user's last two events; users of fewer than three are trained on whole.

    Raises:
        ProtocolError: no user has three events, no user's events differ in time, or there is nothing to be found.
    """
    _check_order(log)
    users = np.flatnonzero(log.end - log.start > FEWEST)
    if not len(users):
        raise ProtocolError("leave-one-out: no user has three events; bring a longer log")
    train = np.ones(len(log), np.bool_)
    last = log.end[users] - 1
    train[last] = train[last - 1] = False
    start = log.start[users]
    valid, test = _cases(log, users, start, last - 1, last), _cases(log, users, start, last, last + 1)
    if not len(valid) or not len(test):
        raise ProtocolError(
            "leave-one-out: no user ends with an unseen item that is engaged with; bring a longer log, or declare "
            "which actions are engaging"
        )
    return Split(log, train, valid, test)


def by_time(log: UserLog, trained: float = 0.7, validated: float = 0.8) -> Split:
    """Train on the first `trained` share of all events; select on those up to `validated`, and test on the rest.

    A case's history is all that its user did before the targets, trained on or not.

    Raises:
        ProtocolError: no order in time, or nothing to be found.
        ValueError: the shares are not 0 < trained < validated < 1.
    """
    if not 0 < trained < validated < 1:
        raise ValueError(f"trained: 0 < trained < validated < 1 must hold, not {trained:g} and {validated:g}")
    _check_order(log)
    timestamp = log.events.timestamp
    first, second = np.quantile(timestamp, [trained, validated])
    users = np.arange(len(log.start))
    cuts = []
    for moment in (first, second):
        before = np.append(0, np.cumsum(timestamp < moment))
        cuts.append(log.start + before[log.end] - before[log.start])
    cases = [
        _cases(log, users[lo < cut], lo[lo < cut], cut[lo < cut], hi[lo < cut])
        for lo, cut, hi in ((log.start, cuts[0], cuts[1]), (log.start, cuts[1], log.end))
    ]
    if not all(map(len, cases)):
        raise ProtocolError("by time: nobody engages with an unseen item late in the log; bring a longer log")
    return Split(log, timestamp < first, *cases)


def disjoint(log: UserLog, fold: int = 0, folds: int = 5, valid_share: float = 0.1, seed: int = 0) -> Split:
    """Test on the users of one fold, select on `valid_share` of all users out of the rest, train on the others.

    The folds are a random permutation of the users by `seed`; with `folds` = 10 and `valid_share` = .1 this is an
    80/10/10 split. Users of one event are in no case and are trained on wherever they fall outside the fold.

    Raises:
        ProtocolError: too few users or events, or no order in time.
        ValueError: `fold` is not one of the folds.
    """
    if not 0 <= fold < folds:
        raise ValueError(f"fold: must be from 0 to {folds - 1}, not {fold}")
    _check_order(log)
    users = np.flatnonzero(log.end > log.start)
    shuffled = np.random.default_rng(seed).permutation(users)
    tested = np.sort(shuffled[fold::folds])
    rest = np.random.default_rng((seed, fold)).permutation(np.setdiff1d(users, tested))
    validated = np.sort(rest[: max(1, round(valid_share * len(users)))])
    train = np.ones(len(log), np.bool_)
    train[np.isin(log.events.user, np.concatenate((tested, validated)))] = False
    if len(users) < folds or not train.any():
        raise ProtocolError(f"disjoint: too few users ({len(users)}) for {folds} folds; bring a longer log")
    return Split(log, train, _halved(log, validated, "validation"), _halved(log, tested, "test"))


def _check_order(log: UserLog) -> None:
    several = np.flatnonzero(log.end - log.start >= FEWEST)
    if not len(several):
        raise ProtocolError("no user has two events, so there is nothing to predict; bring a longer log")
    timestamp = log.events.timestamp
    if (timestamp[log.end[several] - 1] == timestamp[log.start[several]]).all():
        raise ProtocolError("timestamp: no user's events differ in time, so they have no order; check that column")


def _halved(log: UserLog, users: Indices, what: str) -> Cases:
    users = users[log.end[users] - log.start[users] >= FEWEST]
    half = log.start[users] + (log.end[users] - log.start[users]) // 2
    cases = _cases(log, users, log.start[users], half, log.end[users])
    if not len(cases):
        raise ProtocolError(
            f"disjoint: none of the {what} users engages with an unseen item in the second half of the events; "
            "bring a longer log, or declare which actions are engaging"
        )
    return cases


def _cases(log: UserLog, users: Indices, lo: Indices, cut: Indices, hi: Indices) -> Cases:
    """Cases with the history lo..cut and the targets in cut..hi; users without any target are left out."""
    kept, targets, outcomes, seen = [], [], [], []
    actions = tuple(action.name for action in log.vocabulary.actions)
    for case, (begin, middle, end) in enumerate(zip(lo.tolist(), cut.tolist(), hi.tolist(), strict=True)):
        known = np.unique(log.item[begin:middle])
        known = known[known >= 0]
        ahead = middle + np.flatnonzero(log.engaged[middle:end] & ~np.isin(log.item[middle:end], known))
        if not len(ahead):
            continue
        found, which = np.unique(log.item[ahead], return_inverse=True)
        met = np.zeros((len(found), len(actions)), np.bool_)
        met[which, log.events.action[ahead]] = True
        kept.append(case)
        targets.append(found)
        outcomes.append(met)
        seen.append(known)
    return Cases(users[kept], lo[kept], cut[kept], targets, outcomes, seen, actions)
