import math

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pinrec.baselines.contender import one_list, top_unseen
from pinrec.measures import measure
from pinrec.protocols import leave_one_out
from tests.unit.pinrec.small_split import Wanderer, random_user_log


class Seen:
    def __init__(self, seen):
        self.seen = [np.array(sorted(rows), np.int64) for rows in seen]

    def __len__(self):
        return len(self.seen)


def slow_top(scores, seen, k):
    """By sorting all that is unseen, the higher score first and of equal ones the lower row."""
    there = [row for row in range(len(scores)) if row not in seen and scores[row] > -math.inf]
    best = sorted(there, key=lambda row: (-scores[row], row))[:k]
    return best + [-1] * (k - len(best))


@settings(max_examples=300, deadline=None)
@given(st.data(), st.integers(1, 9), st.integers(1, 12))
def test_the_best_unseen_rows_come_first_and_ties_go_to_the_lower_row(data, items, k):
    users = data.draw(st.integers(1, 3))
    score = st.sampled_from([-math.inf, -1.0, 0.0, 0.5, 2.0])  # few values: most of them tie
    scores = [data.draw(st.lists(score, min_size=items, max_size=items)) for _ in range(users)]
    seen = [data.draw(st.sets(st.integers(0, items - 1))) for _ in range(users)]
    expected = [slow_top(row, known, k) for row, known in zip(scores, seen, strict=True)]
    assert top_unseen(torch.tensor(scores), Seen(seen), k).tolist() == expected


def test_one_list_cut_into_embeddings_finds_the_same_as_the_list():
    split = leave_one_out(random_user_log(items=9))
    contender = Wanderer(split)
    contender.fit_epoch()
    parts = one_list(contender, split.test, 3, 4)
    assert parts.shape == (len(split.test), 3, 4)
    np.testing.assert_array_equal(parts.reshape(len(split.test), 12), contender.ranked(split.test, 12))
    found = measure(contender, split.test, 3, 4).figures
    np.testing.assert_array_equal(found["unordered@4"], found["equal@12"])
    assert set(found["diversity"]) == {1.0}


def test_what_was_seen_never_comes_back():
    split = leave_one_out(random_user_log(items=9))
    for row, seen in zip(Wanderer(split).ranked(split.test, 9), split.test.seen, strict=True):
        assert not set(row.tolist()) & set(seen.tolist())
        assert (row >= 0).sum() == 9 - len(seen)
