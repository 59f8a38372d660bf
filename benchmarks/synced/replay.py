"""A real log played again in its own time: what is found when histories, or weights, are as of the last sync."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pinrec.bundle import Bundle
from pinrec.contender import PinRecRecipe, packed_rows
from pinrec.dataset import EventColumns
from pinrec.generation import generate, popular
from pinrec.history import History
from pinrec.popularity import Popularity
from pinrec.protocols import UserLog
from pinrec.requests import GenerationRequest
from pinrec.training import Learner

K: Final = 10
SYNCS_S: Final = {"event": 0.0, "minute": 60.0, "hour": 3_600.0, "day": 86_400.0, "never": np.inf}
"""Seconds between two syncs; that of an event is immediate."""
_BATCH: Final = 64
_NEWEST: Final = 200_000
_MOST_STEPS: Final = 60

Progress = Callable[[str, int, int], None]
Found = dict[str, NDArray[np.bool_]]
"""Sync -> whether each moment's item was found."""


@dataclass(frozen=True, eq=False)
class Moments:
    """What users engaged with in the time played again, each to be found just before it happened.

    Attributes:
        row: int64[M], rows of the `UserLog`, by time.
        at: float64[M], epoch seconds.
        item: int64[M], catalogue rows to be found.
    """

    row: NDArray[np.int64]
    at: NDArray[np.float64]
    item: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.row)


@dataclass
class Replay:
    """A log of which the last part is played again.

    Args:
        log: all of it.
        recipe: sizes and rates of the model.
        begin: epoch seconds; what comes before is trained on and known.
        most: moments tested, a random sample; all = None.
        seed: of weights and sample.
    """

    log: UserLog
    recipe: PinRecRecipe
    begin: float
    most: int | None = None
    seed: int = 0
    progress: Progress = lambda *_: None
    rounds: int = field(default=0, init=False)

    @cached_property
    def moments(self) -> Moments:
        """Engaged items that the user had not met before, by users with events before the sync that never comes."""
        log = self.log
        row = np.flatnonzero(log.engaged & (log.events.timestamp >= self.begin))
        user = log.events.user[row]
        known = np.array([self._end(u, self.begin) > log.start[u] for u in user], np.bool_)
        row, user = row[known], user[known]
        new = np.array(
            [
                log.item[r] not in log.item[log.start[u] : self._end(u, log.events.timestamp[r])]
                for r, u in zip(row, user, strict=True)
            ],
            np.bool_,
        )
        row = row[new]
        if self.most is not None and len(row) > self.most:
            row = np.random.default_rng(self.seed).choice(row, self.most, replace=False)
        row = row[np.argsort(log.events.timestamp[row], kind="stable")]
        return Moments(row, log.events.timestamp[row], log.item[row])

    @cached_property
    def by_time(self) -> EventColumns:
        """All events in the order of their times."""
        return self.log.events.at(np.argsort(self.log.events.timestamp, kind="stable"))

    def run(self) -> tuple[Found, Found]:
        """What is found with older and older histories, and with older and older weights."""
        learner = self._learner()
        first = self._bundle(learner)
        return self._histories(first), self._weights(learner, first)

    def _histories(self, bundle: Bundle) -> Found:
        every, at = np.arange(len(self.moments)), self.moments.at
        return {name: self._found(bundle, every, _last_sync(at, self.begin, s)) for name, s in SYNCS_S.items()}

    def _weights(self, learner: Learner, first: Bundle) -> Found:
        """One training goes on through the time, a round a minute as the trainer does; each sync takes its weights."""
        syncs = {name: every_s for name, every_s in SYNCS_S.items() if every_s >= SYNCS_S["minute"]}
        moments = self.moments
        live, taken_at = dict.fromkeys(syncs, first), dict.fromkeys(syncs, self.begin)
        found = {name: np.zeros(len(moments), np.bool_) for name in syncs}
        minutes = list(self._minutes())
        trained = int(np.searchsorted(self.by_time.timestamp, self.begin))
        newest: Bundle | None = None
        for number, minute in enumerate(minutes):
            self.progress("rounds", number, len(minutes))
            # The weights of `minute` know what came before it; due are the syncs whose time has come since their last.
            for name, every_s in syncs.items():
                if _last_sync(np.array([minute]), self.begin, every_s)[0] > taken_at[name]:
                    newest = newest or self._bundle(learner)
                    live[name], taken_at[name] = newest, minute
            due = np.flatnonzero((moments.at >= minute) & (moments.at < minute + SYNCS_S["minute"]))
            made: dict[int, NDArray[np.bool_]] = {}
            for name, bundle in live.items():
                if len(due):
                    if id(bundle) not in made:
                        made[id(bundle)] = self._found(bundle, due, moments.at[due])
                    found[name][due] = made[id(bundle)]
            upto = int(np.searchsorted(self.by_time.timestamp, minute + SYNCS_S["minute"]))
            if self._round(learner, trained, upto):
                newest = None
            trained = upto
        self.progress("rounds", 1, 1)
        return found

    def _minutes(self) -> Iterator[float]:
        end, minute = float(self.log.events.timestamp.max()), self.begin
        while minute <= end:
            yield minute
            minute += SYNCS_S["minute"]

    def _learner(self) -> Learner:
        """Trained on everything before `begin`."""
        recipe, rows = self.recipe, int(np.searchsorted(self.by_time.timestamp, self.begin))
        training = recipe.training.model_copy(update={"seed": self.seed})
        learner = Learner(recipe.model, self.log.vocabulary, training, recipe.generation.mode)
        steps = max(1, round(recipe.epochs * rows / (training.batch_users * training.window)))
        learner.fit(
            self.by_time.before(rows),
            self.log.catalogue,
            steps,
            lambda done, of, _: self.progress("training", done, of),
        )
        return learner

    def _round(self, learner: Learner, since: int, until: int) -> bool:
        """One round of the trainer on the rows since..until; False where they hold nothing to learn."""
        oldest = max(0, until - _NEWEST)
        events = self.by_time.at(np.arange(oldest, until))
        new = int(events.engaged(self.log.vocabulary)[since - oldest :].sum())
        if not new:
            return False
        per_step = learner.training.batch_users * 4
        learner.fit(events, self.log.catalogue, max(1, min(_MOST_STEPS, 2 * new // per_step)), since_row=since - oldest)
        self.rounds += 1
        return True

    @cached_property
    def _popularity(self) -> Popularity:
        rows = int(np.searchsorted(self.by_time.timestamp, self.begin))
        return Popularity.of(self.by_time.before(rows), self.log.catalogue, self.log.vocabulary)

    def _bundle(self, learner: Learner) -> Bundle:
        return Bundle.of(learner.served(), self.log.catalogue, self._popularity, mode=self.recipe.generation.mode)

    @cached_property
    def _packed(self) -> np.ndarray:
        return packed_rows(self.log)

    def _end(self, user: int, at: float) -> int:
        """Behind the user's last event before `at`: events of the same moment are not known yet."""
        start, end = int(self.log.start[user]), int(self.log.end[user])
        return start + int(np.searchsorted(self.log.events.timestamp[start:end], at))

    def _found(self, bundle: Bundle, which: NDArray[np.int64], synced: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Whether the items of the moments `which` are found from the histories as of the times `synced`."""
        log, moments = self.log, self.moments
        requests = []
        for m, until in zip(which.tolist(), synced.tolist(), strict=True):
            row = int(moments.row[m])
            user = int(log.events.user[row])
            requests.append(
                GenerationRequest(
                    History.of_rows(self._packed[int(log.start[user]) : self._end(user, until)]),
                    k=K,
                    now=float(moments.at[m]),
                    surface=int(log.events.surface[row]),
                )
            )
        hits = np.zeros(len(which), np.bool_)
        order = sorted(range(len(requests)), key=lambda i: len(requests[i].history or ()))
        for at in range(0, len(order), _BATCH):
            batch = order[at : at + _BATCH]
            some = [i for i in batch if requests[i].history]
            lists = dict(zip(some, generate(bundle, [requests[i] for i in some], self.recipe.generation), strict=True))
            for i in batch:
                candidates = lists[i] if i in lists else popular(bundle, requests[i])
                hits[i] = any(candidate.row == moments.item[which[i]] for candidate in candidates)
        return hits


def _last_sync(at: NDArray[np.float64], begin: float, every_s: float) -> NDArray[np.float64]:
    if every_s == 0:
        return at
    if np.isinf(every_s):
        return np.full(len(at), begin)
    return begin + np.floor((at - begin) / every_s) * every_s
