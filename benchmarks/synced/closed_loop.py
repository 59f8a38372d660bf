"""Inhabitants act on what they are recommended, and that is what is learnt from: what is each way of syncing worth?

In each simulated minute everybody in session gets a list, looks at it and acts. The town knows what a list is worth.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from benchmarks.synced.rounds import train_round
from benchmarks.synced.syncs import MINUTE_S, SYNCS_S, last_sync
from benchmarks.synced.town import OPENS_AT, Opening, item_of
from pinrec.bundle import Bundle
from pinrec.dataset import EventColumns
from pinrec.delta import Delta
from pinrec.evaluation import outcome_shares
from pinrec.generation import generate, popular
from pinrec.history import ROW, History
from pinrec.index import ItemIndex
from pinrec.items import Catalogue, Item
from pinrec.popularity import Popularity
from pinrec.requests import Candidate, GenerationRequest
from pinrec.training import Learner
from streaming.schema import ItemUpdate, Recommendation, RecommendedItem, SequenceInfo, UserEvent

Part = Literal["histories", "weights", "catalogue"]
PARTS: Final[tuple[Part, ...]] = ("histories", "weights", "catalogue")
OUTCOMES: Final = ("click", "save", "share")
K: Final = 10
_HOUR: Final = 60
_DAY: Final = 24 * _HOUR
_RECENT: Final = 20_000
_MOST: Final = 100_000
_SAMPLED: Final = 5


@dataclass(frozen=True)
class Lived:
    """What a life was worth.

    Attributes:
        sessions: int64[H], that began in each hour.
        reward: float64[H], true worth of all lists of these sessions: the clicks, saves and shares to be expected,
            given how far inhabitants look.
        of_best: what lists were worth, of what the best list of that moment would have been; from a list in five
            minutes.
        rounds: of training.
    """

    sessions: NDArray[np.int64]
    reward: NDArray[np.float64]
    of_best: float
    rounds: int


class ClosedLoop:
    """One life of the town.

    Args:
        opening: stays as it is, for the next life.
        sync: each part's, of `SYNCS_S`; what is not named is synced each minute.
    """

    def __init__(self, opening: Opening, sync: Mapping[Part, str]) -> None:
        self.life, self.seed, self.vocabulary = opening.life, opening.seed, opening.vocabulary
        self._columns, self._events = opening.columns, opening.past
        self._town = copy.deepcopy(opening.town)
        self._learner = Learner(self.life.model, self.vocabulary, opening.learner.training, self.life.generation.mode)
        self._learner.load_state(opening.learner.state())
        self._every_s = {part: SYNCS_S[sync.get(part, "minute")] for part in PARTS}
        self._synced = dict.fromkeys(PARTS, OPENS_AT)
        # The catalogue and the histories as they are, and how much of them was known at the last sync.
        self._items, self._catalogue = dict(opening.items), opening.catalogue
        self._histories = [np.empty(0, ROW) for _ in opening.town.user_ids]
        self._remember(opening.past)
        self._known = [len(rows) for rows in self._histories]
        self._changes: dict[str, Item | None] = {}
        self._shown = self._catalogue
        self._delta: Delta | None = None
        self._learnt = False
        self._bundle = Bundle.of(
            self._learner.served(),
            self._shown,
            self._popularity(),
            mode=self.life.generation.mode,
            outcomes=outcome_shares(opening.past, self.vocabulary),
        )
        self._look = (1 - 1 / self.life.town.patience) ** np.arange(K)

    def run(self, progress: Callable[[int, int], None] = lambda *_: None) -> Lived:
        """All of it."""
        rng = np.random.default_rng((self.seed, 1))
        minutes, user_ids = round(self.life.days * _DAY), self._town.user_ids
        hours = -(-minutes // _HOUR)
        sessions, reward = np.zeros(hours, np.int64), np.zeros(hours)
        left: dict[int, tuple[int, int]] = {}  # by inhabitant: lists to come, the hour that the session began in
        given = best = 0.0
        rounds = 0
        for minute in range(minutes):
            progress(minute, minutes)
            now = OPENS_AT + minute * MINUTE_S
            self._sync(now)
            # Who comes and how long they stay depends on nothing that is recommended.
            chance = self._town.about(now)
            for user in rng.choice(len(user_ids), rng.poisson(self.life.sessions), p=chance).tolist():
                length = int(rng.geometric(1 / self.life.town.session_views))
                if user not in left:
                    left[user] = (length, minute // _HOUR)
                    sessions[minute // _HOUR] += 1
            made: list[UserEvent] = []
            for number, (user, items) in enumerate(self._lists(list(left), now).items()):
                length, hour = left.pop(user)
                if length > 1:
                    left[user] = (length - 1, hour)
                worth = self._worth(user_ids[user], items, now)
                reward[hour] += worth
                if not number and minute % _SAMPLED == 0:
                    given += worth
                    best += self._worth(user_ids[user], None, now)
                made += self._town.answer(self._recommendation(user_ids[user], items, now), now)
            rounds += self._learn(made)
        return Lived(sessions, reward, given / best, rounds)

    def _sync(self, now: float) -> None:
        """Bring up to date what is due."""
        changes = {
            change.item_id: item_of(change) if isinstance(change, ItemUpdate) else None
            for change in self._town.turn_over(now)
        }
        if changes:
            self._changes |= changes
            self._items = {i: item for i, item in (self._items | changes).items() if item is not None}
            self._catalogue = Catalogue.following(self._catalogue, self._items, changes, self.life.model)
        at = np.array([now])
        due = {part for part in PARTS if last_sync(at, OPENS_AT, self._every_s[part])[0] > self._synced[part]}
        self._synced |= dict.fromkeys(due, now)
        late: dict[str, Item | None] = {}
        if "catalogue" in due:
            self._shown, late, self._changes = self._catalogue, self._changes, {}
        if "histories" in due:
            self._known = [len(rows) for rows in self._histories]
        if "weights" in due and self._learnt:
            self._bundle, self._delta, self._learnt = self._next(), None, False
        elif late:
            self._delta = (
                Delta.of(self._bundle, late, _MOST)
                if self._delta is None
                else self._delta.updated(self._bundle, late, _MOST)
            )

    def _next(self) -> Bundle:
        """The bundle of what is learnt by now, without the golden answers and checks that a file needs."""
        model = copy.deepcopy(self._learner.served()).eval().requires_grad_(False)
        table = model.item_table(self._shown)
        return replace(
            self._bundle,
            model=model,
            catalogue=self._shown,
            table=table,
            index=ItemIndex.build(table),
            popularity=self._popularity(),
        )

    def _popularity(self) -> Popularity:
        recent = self._events.at(np.arange(max(0, len(self._events) - _RECENT), len(self._events)))
        return Popularity.of(recent, self._shown, self.vocabulary)

    def _lists(self, users: Sequence[int], now: float) -> dict[int, list[Candidate]]:
        home = self.vocabulary.surface_index["home"]
        requests = {
            user: GenerationRequest(
                History.of_rows(self._histories[user][: self._known[user]]), k=K, now=now, surface=home
            )
            for user in users
        }
        met = [user for user in users if self._known[user]]
        lists = generate(self._bundle, [requests[user] for user in met], self.life.generation, delta=self._delta)
        made = dict(zip(met, lists, strict=True))
        return {user: made.get(user) or popular(self._bundle, requests[user], delta=self._delta) for user in users}

    def _worth(self, user_id: str, items: Sequence[Candidate] | None, now: float) -> float:
        """True worth of a list; None = of the best there could be."""
        ids = list(self._items) if items is None else [item.item_id for item in items]
        worth = sum(self._town.true_reward(user_id, ids, outcome, now) for outcome in OUTCOMES)
        placed: NDArray[np.float64] = np.sort(worth)[::-1][:K] if items is None else np.asarray(worth)
        return float(placed @ self._look[: len(placed)])

    def _learn(self, made: list[UserEvent]) -> bool:
        """Take in what was done; True where it was trained on."""
        if not made:
            return False
        new, since = self._columns(made), len(self._events)
        self._events = _joined(self._events, new)
        self._remember(new)
        if np.isinf(self._every_s["weights"]):
            return False
        learnt = train_round(self._learner, self._events, self._catalogue, since, self.seed)
        self._learnt |= learnt
        return learnt

    def _remember(self, new: EventColumns) -> None:
        rows = np.zeros(len(new), ROW)
        for name in ("timestamp", "item_hash", "action", "surface"):
            rows[name] = getattr(new, name)
        order = np.argsort(new.user, kind="stable")
        users, first = np.unique(new.user[order], return_index=True)
        for user, own in zip(users.tolist(), np.split(rows[order], first[1:]), strict=True):
            self._histories[user] = np.concatenate((self._histories[user], own))

    @staticmethod
    def _recommendation(user_id: str, items: Sequence[Candidate], now: float) -> Recommendation:
        return Recommendation(
            request_id=f"{user_id} {now:.0f}",
            user_id=user_id,
            model_version="",
            created_at=now,
            trigger="query",
            degraded=False,
            sequence=SequenceInfo(length=0),
            items=[RecommendedItem(item_id=item.item_id, score=item.score) for item in items],
        )


def _joined(events: EventColumns, new: EventColumns) -> EventColumns:
    """Both, one after the other; users have the same numbers in both."""
    columns = {f.name: getattr(events, f.name) for f in fields(EventColumns)}
    for name, column in columns.items():
        if isinstance(column, np.ndarray):
            columns[name] = np.concatenate((column, getattr(new, name)))
    return EventColumns(**columns)
