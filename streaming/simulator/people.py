"""The inhabitants: who they are, when they are about, and what they truly like.

Taste is a pure function of inhabitant and time, so the oracle can be asked about any moment, in any order.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from streaming.simulator.config import TownConfig
from streaming.simulator.randomness import Stream, generator
from streaming.simulator.words import FIRST_NAMES, KINDS

Taste = NDArray[np.float64]

DAY_S: Final = 86_400.0
_FAVOURITES: Final = np.array([0.55, 0.30, 0.15])
_ELSEWHERE: Final = 0.06  # share of taste that lies evenly on all topics
_SWING: Final = 0.5  # how far drift moves a favourite's weight, as a share of it
_HALF: Final = 0.1  # share of taste at which half of an item's appeal is felt
_RHYTHM: Final = np.array(
    (
        *(0.06, 0.03, 0.02, 0.02, 0.03, 0.10, 0.35, 0.70, 0.80, 0.70, 0.65, 0.70),
        *(0.90, 0.80, 0.65, 0.60, 0.70, 0.85, 1.00, 1.10, 1.20, 1.10, 0.70, 0.25),
    )
)


class People:
    """All inhabitants. The index of an inhabitant is their row in every array here."""

    def __init__(self, config: TownConfig) -> None:
        count = config.inhabitants
        rng = generator(config.seed, Stream.PERSON)
        self._config = config
        self.user_ids = [f"{FIRST_NAMES[i % len(FIRST_NAMES)]}-{i:04d}" for i in range(count)]
        self._index = {user_id: i for i, user_id in enumerate(self.user_ids)}
        self.activity = np.exp(rng.normal(0.0, 0.9, count))
        self._later_h = rng.normal(0.0, 1.2, count)  # night owls are late, larks early
        self.kind_taste = np.exp(rng.normal(0.0, 0.25, (count, len(KINDS))))
        self._topics = rng.permuted(np.tile(np.arange(config.topics), (count, 1)), axis=1)
        slots = (count, len(_FAVOURITES))
        self._stay_s = config.jump_days * DAY_S * rng.uniform(0.5, 1.5, slots)
        self._stay_phase_s = self._stay_s * rng.uniform(0, 1, slots)
        self._drift_s = config.drift_days * DAY_S * rng.uniform(0.7, 1.3, slots)
        self._drift_phase = rng.uniform(0, 2 * np.pi, slots)
        self._favourite: dict[tuple[int, int, int], int] = {}

    def index(self, user_id: str) -> int:
        """Index of an inhabitant, or -1 for a stranger."""
        return self._index.get(user_id, -1)

    def taste(self, person: int, at: float) -> Taste:
        """True share of interest in each topic; sums to 1. float64[topics]."""
        topics = self._config.topics
        phase = 2 * np.pi * at / self._drift_s[person] + self._drift_phase[person]
        weights = _FAVOURITES * (1 + _SWING * np.sin(phase))
        weights *= (1 - _ELSEWHERE) / weights.sum()
        stays = ((at + self._stay_phase_s[person]) // self._stay_s[person]).astype(int)
        taste = np.full(topics, _ELSEWHERE / topics)
        for slot, stay in enumerate(stays.tolist()):
            taste[self._favourite_topic(person, slot, stay)] += weights[slot]
        return taste

    def interest(self, person: int, at: float) -> Taste:
        """How much of an item's appeal is felt, by topic: saturates, so a second favourite still counts."""
        taste = self.taste(person, at)
        felt: Taste = taste / (taste + _HALF)
        return felt

    def about(self, at: float) -> NDArray[np.float64]:
        """Relative chance that each inhabitant starts a session now: own activity times the hour. float64[N]."""
        hour = (at / 3_600 - self._later_h) % 24
        weight: NDArray[np.float64] = self.activity * np.interp(hour, np.arange(25), np.append(_RHYTHM, _RHYTHM[0]))
        return weight

    def session_starts(
        self, rng: np.random.Generator, day: float, count: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Who starts a session when, in the 24 h from `day` (epoch s). int64[count], float64[count]."""
        who = rng.choice(len(self.user_ids), count, p=self.activity / self.activity.sum())
        hour = rng.choice(24, count, p=_RHYTHM / _RHYTHM.sum()) + rng.uniform(0, 1, count) + self._later_h[who]
        return who, day + (hour * 3_600 - day) % DAY_S

    def _favourite_topic(self, person: int, slot: int, stay: int) -> int:
        """The topic that fills a slot during its stay.

        Each slot has two pools of its own and takes turns between them, so that favourites are distinct topics and a
        jump always leads to another one.
        """
        key = (person, slot, stay)
        if key not in self._favourite:
            pool = self._topics[person, 2 * slot + stay % 2 :: 2 * len(_FAVOURITES)]
            rng = generator(self._config.seed, Stream.FAVOURITE, person, slot, stay)
            self._favourite[key] = int(rng.choice(pool))
        return self._favourite[key]
