"""A real log played again in its own time: what is found when histories, or weights, are as of the last sync."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.synced.rounds import train_round
from benchmarks.synced.syncs import MINUTE_S, SYNCS_S, last_sync
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
_BATCH: Final = 64
_AVERAGING: Final = 0.9
"""Ten rounds: with the recipe's 0.99 what is served would be as of a hundred steps ago, whatever the sync."""

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

    @cached_property
    def start(self) -> Learner:
        """Trained on everything before `begin`; `weights` goes on from a copy."""
        recipe, rows = self.recipe, self._rows_before(self.begin)
        learner = self._learner()
        training = learner.training
        steps = max(1, round(recipe.epochs * rows / (training.batch_users * training.window)))
        learner.fit(
            self.by_time.before(rows),
            self.log.catalogue,
            steps,
            lambda done, of, _: self.progress("training", done, of),
        )
        return learner

    @cached_property
    def first(self) -> Bundle:
        """What was served at `begin`."""
        return self._bundle(self.start)

    def histories(self) -> Found:
        """What is found with older and older histories, by the weights of the beginning."""
        every, at = np.arange(len(self.moments)), self.moments.at
        return {name: self._found(self.first, every, last_sync(at, self.begin, s)) for name, s in SYNCS_S.items()}

    def weights(self) -> Found:
        """What is found with older and older weights, from histories of the moment.

        One training goes on through the time, a round a minute as the trainer does; each sync takes its weights.
        """
        syncs = {name: every_s for name, every_s in SYNCS_S.items() if every_s >= MINUTE_S}
        moments, learner = self.moments, self._learner()
        learner.load_state(self.start.state())
        found = {name: np.zeros(len(moments), np.bool_) for name in syncs}
        live, since = dict.fromkeys(syncs, self.first), dict.fromkeys(syncs, self.begin)
        newest: Bundle | None = self.first
        trained, self.rounds = self._rows_before(self.begin), 0

        def ask(name: str, until: float) -> None:
            """The moments that this sync's weights stood for; asked together, when they are replaced."""
            due = np.flatnonzero((moments.at >= since[name]) & (moments.at < until))
            found[name][due] = self._found(live[name], due, moments.at[due])

        minutes = self._minutes()
        for number, minute in enumerate(minutes):
            self.progress("rounds", number, len(minutes))
            # The weights of a minute know what came before it. A version that nobody will ask is not made.
            for name, every_s in syncs.items():
                due_at = last_sync(np.array([minute]), self.begin, every_s)[0]
                if due_at > since[name] and ((moments.at >= minute) & (moments.at < due_at + every_s)).any():
                    ask(name, minute)
                    newest = newest or self._bundle(learner)
                    live[name], since[name] = newest, minute
            upto = self._rows_before(minute + MINUTE_S)
            events = self.by_time.before(upto)
            if train_round(learner, events, self.log.catalogue, trained, self.seed):
                newest, self.rounds = None, self.rounds + 1
            trained = upto
        for name in syncs:
            ask(name, np.inf)
        self.progress("rounds", 1, 1)
        return found

    def _minutes(self) -> NDArray[np.float64]:
        return np.arange(self.begin, float(self.log.events.timestamp.max()) + 1.0, MINUTE_S)

    def _rows_before(self, at: float) -> int:
        return int(np.searchsorted(self.by_time.timestamp, at))

    def _learner(self) -> Learner:
        recipe = self.recipe
        training = recipe.training.model_copy(update={"seed": self.seed, "averaging": _AVERAGING})
        return Learner(recipe.model, self.log.vocabulary, training, recipe.generation.mode)

    @cached_property
    def _popularity(self) -> Popularity:
        return Popularity.of(
            self.by_time.before(self._rows_before(self.begin)), self.log.catalogue, self.log.vocabulary
        )

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
