"""Rounds of training on the newest events, as the periodic trainer makes them, at a cost that does not grow."""

from typing import Final

import numpy as np

from pinrec.dataset import EventColumns
from pinrec.items import Catalogue
from pinrec.training import Learner

REPLAYED: Final = 64
"""Older events, drawn anew for each round, whose users' events it may replay."""


def train_round(learner: Learner, events: EventColumns, catalogue: Catalogue, since: int, seed: int) -> bool:
    """One round on the rows from `since` on, by the trainer's own rule for the steps.

    Windows hold the events of one user each. So it is told what those users did who have such rows, and some others
    for the replay: all else would be sorted in vain.

    Args:
        events: in order of time.

    Returns:
        False where there is nothing to learn.
    """
    new = int(events.at(np.arange(since, len(events))).engaged(learner.vocabulary).sum())
    if not new:
        return False
    concerned = np.zeros(len(events.user_ids), np.bool_)
    if since:
        replayed = np.random.default_rng((seed, since)).integers(0, since, REPLAYED)
        concerned[events.user[replayed]] = True
    concerned[events.user[since:]] = True
    rows = np.flatnonzero(concerned[events.user])
    settings = learner.training
    # About two passes over the new events, see `streaming.trainer`.
    steps = int(2 * new / (settings.batch_users * 4 * (1 - settings.replay_share)))
    fitted = learner.fit(
        events.at(rows),
        catalogue,
        max(1, min(settings.round_steps, steps)),
        since_row=int(np.searchsorted(rows, since)),
    )
    return fitted.steps > 0
