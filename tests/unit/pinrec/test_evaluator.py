"""From a log's events to its figures, against plain Python that follows docs/quality.md word by word."""

import math
from collections import Counter

import numpy as np
import pytest
import torch

from pinrec.baselines.contender import top_unseen
from pinrec.baselines.popular import Popular, PopularConfig
from pinrec.measures import measure
from pinrec.protocols import disjoint, leave_one_out
from tests.unit.pinrec.plain_figures import figures_of
from tests.unit.pinrec.small_split import VOCABULARY, user_log

ITEMS, USERS, E, K = 14, 60, 3, 4
ACTIONS = [action.name for action in VOCABULARY.actions]


class Tied:
    """Each embedding scores items by whole numbers from 0 to 2, so that most of them tie; a list is by their sum."""

    def __init__(self, seed):
        self.scores = np.random.default_rng(seed).integers(0, 3, (USERS, E, ITEMS))

    def ranked(self, cases, k):
        return top_unseen(torch.tensor(self.scores[cases.user].sum(1), dtype=torch.float32), cases, k)

    def generated(self, cases, embeddings, k):
        each = [torch.tensor(self.scores[cases.user, e], dtype=torch.float32) for e in range(embeddings)]
        return np.stack([top_unseen(scores, cases, k) for scores in each], axis=1)


def events(seed):
    """(user, item, action, time), by user and time, with items met again and again."""
    rng = np.random.default_rng(seed)
    return [
        (user, int(rng.integers(ITEMS)), ACTIONS[rng.integers(3)], float(time))
        for user in range(USERS)
        for time in range(rng.integers(4, 13))
    ]


def best(score_of, seen, k):
    """The unseen items of the highest scores, of equal ones the lower row."""
    unseen = [item for item in range(ITEMS) if item not in seen]
    return sorted(unseen, key=lambda item: (-score_of[item], item))[:k]


def cut(mine, protocol):
    """The history of a user's events, and what each item to be found met with."""
    at = len(mine) - 1 if protocol == "loo" else len(mine) // 2
    seen, met = {item for _, item, _, _ in mine[:at]}, {}
    for _, item, action, _ in mine[at:]:
        if action != "skip" and item not in seen:
            met.setdefault(item, set()).add(action)
    return seen, met


def agree(per_user, expected):
    assert per_user.user.tolist() == list(expected)
    assert per_user.figures.keys() == next(iter(expected.values())).keys()
    for name, values in per_user.figures.items():
        np.testing.assert_allclose(values, [mine[name] for mine in expected.values()], rtol=1e-12, err_msg=name)


@pytest.fixture(autouse=True)
def _several_batches(monkeypatch):
    monkeypatch.setattr("pinrec.measures.BATCH", 7)


@pytest.mark.parametrize("protocol", ["disjoint", "loo"])
@pytest.mark.parametrize("seed", range(5))
def test_figures_of_tied_scores_are_those_that_follow_from_the_events(seed, protocol):
    rows = events(seed)
    log = user_log(*((f"u{user:02}", *rest) for user, *rest in rows), items=ITEMS)
    split = disjoint(log, folds=3) if protocol == "disjoint" else leave_one_out(log)
    contender = Tied(seed)
    tested = range(USERS) if protocol == "loo" else sorted(np.random.default_rng(0).permutation(USERS)[::3].tolist())
    expected, lists = {}, []
    for user in tested:
        seen, met = cut([row for row in rows if row[0] == user], protocol)
        if met:
            score = contender.scores[user]
            lists.append(best(score.sum(0), seen, E * K))
            found = [best(score[e], seen, K) for e in range(E)]
            expected[user] = figures_of(lists[-1], found, met, ACTIONS, K)
    per_user = measure(contender, split.test, E, K)
    agree(per_user, expected)
    assert per_user.distinct == len({item for listed in lists for item in listed[:K]})
    for name, value in per_user.mean().items():
        if name in per_user.figures:
            have = [mine[name] for mine in expected.values() if not math.isnan(mine[name])]
            assert value == pytest.approx(np.mean(have) if have else math.nan, nan_ok=True)


@pytest.mark.parametrize("seed", range(3))
def test_figures_of_what_is_popular_follow_from_the_events_trained_on(seed):
    rows = events(seed)
    log = user_log(*((f"u{user:02}", *rest) for user, *rest in rows), items=ITEMS)
    split = disjoint(log, folds=3)
    held_back = {int(user) for user in np.flatnonzero(~split.train[log.start])}
    count, before = Counter(), None
    for user, item, action, _ in rows:
        if user not in held_back and action != "skip" and (user, item) != before:
            count[item] += 1
        before = (user, item) if action != "skip" else before
    expected = {}
    for user in split.test.user.tolist():
        seen, met = cut([row for row in rows if row[0] == user], "disjoint")
        listed = best(count, seen, E * K)
        found = [listed[e * K : (e + 1) * K] for e in range(E)]
        expected[user] = figures_of(listed, found, met, ACTIONS, K)
    agree(measure(Popular(split, PopularConfig()), split.test, E, K), expected)
