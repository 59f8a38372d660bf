"""The town's past: sessions through days and nights, as a log in time order."""

from collections.abc import Iterator
from heapq import heappop, heappush
from typing import Final

import numpy as np

from streaming.schema import UserEvent
from streaming.simulator.config import TownConfig
from streaming.simulator.people import DAY_S, People
from streaming.simulator.randomness import Stream, generator
from streaming.simulator.visits import Visits

_GLANCE_S: Final = 4.0
_PAUSE_S: Final = 40.0


def past_events(config: TownConfig, people: People, visits: Visits, until: float) -> Iterator[UserEvent]:
    """About `config.past_events` events of the `config.past_days` before `until`, by time."""
    first_day = until - config.past_days * DAY_S
    views: list[tuple[float, int]] = []
    made: list[tuple[float, str, UserEvent]] = []
    viewed, count = 0, 0
    for day in range(config.past_days):
        # The first day's guess is corrected by what a view turned out to yield.
        per_view = count / viewed if viewed else config.patience
        wanted = (config.past_events - count) / (config.past_days - day) / per_view
        for view in _day(config, people, first_day + day * DAY_S, max(1, round(wanted / config.session_views))):
            heappush(views, view)
        night = first_day + (day + 1) * DAY_S
        while views and views[0][0] < night:
            at, person = heappop(views)
            while made and made[0][0] <= at:
                yield heappop(made)[2]
            events = visits.organic(person, at, Stream.PAST, _GLANCE_S)
            viewed, count = viewed + 1, count + len(events)
            for event in events:
                heappush(made, (event.timestamp, str(event.event_id), event))
    while made and made[0][0] <= until:
        yield heappop(made)[2]


def _day(config: TownConfig, people: People, day: float, sessions: int) -> Iterator[tuple[float, int]]:
    """(time, inhabitant) of every view of the sessions that start in a day."""
    rng = generator(config.seed, Stream.SCHEDULE, int(day))
    who, starts = people.session_starts(rng, day, sessions)
    lengths = rng.geometric(1 / config.session_views, sessions)
    for person, start, length in zip(who.tolist(), starts.tolist(), lengths.tolist(), strict=True):
        # A pause is longer than the longest list takes to read, so a person is never at two lists at once.
        pauses = config.list_size * _GLANCE_S + rng.exponential(_PAUSE_S, length)
        for at in (start + np.cumsum(pauses)).tolist():
            yield at, person
