from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pinrec.pooling import Found, Pools, turns

TEMPERATURE = 0.1
X_ND = np.array([[1, 0], [0.8, 0.6], [0.6, 0.8], [0, 1]], np.float32)
HASH_N = np.array([2**64 - 1, 5, 2**63, 0], np.uint64)
VIEW = SimpleNamespace(
    vectors=lambda row: X_ND[row], hashes=lambda row: HASH_N[row], bundle=SimpleNamespace(temperature=TEMPERATURE)
)
# Two requests; the first aims at two outcomes, one of them with two embeddings of 3 and 1 places.
E_BED = np.array([[[1, 0], [0, 1], [0, 1]], [[1, 0], [0, 1], [0, 1]]], np.float32)
OUTCOME_BE = np.array([[2, 2, 0], [1, 1, 1]])
SLOTS_BE = np.array([[3, 1, 5], [2, 0, 0]])
FOUND = Found(
    request_Q=np.array([0, 0, 0, 1]),
    at_Q=np.array([0, 1, 2, 0]),
    item_QK=np.array([[0, 1], [3, 1], [3, 2], [0, -1]]),
)
NOBODY = [np.empty(0, np.uint64), np.empty(0, np.uint64)]


def lists(pools, refused, e_BED=E_BED, outcome_BE=OUTCOME_BE, slots_BE=SLOTS_BE, depth=1):
    """(row, embedding, score) of each request's items."""
    taken = pools.filled(VIEW, pools.admitted(VIEW, refused), e_BED, outcome_BE, slots_BE, depth)
    made = {b: [] for b in pools.requests}
    columns = (taken.request_N, taken.row_N, taken.at_N, taken.score_N)
    for b, *one in zip(*(column.tolist() for column in columns), strict=True):
        made[b].append(tuple(one))
    return made


def test_what_an_outcomes_embeddings_find_is_pooled_once():
    pools = Pools.of(OUTCOME_BE, SLOTS_BE, FOUND)
    assert pools.request_G.tolist() == [0, 0, 1]
    assert pools.outcome_G.tolist() == [2, 0, 1]
    assert pools.places_G.tolist() == [4, 5, 2]
    assert pools.row_M.tolist() == [0, 1, 3, 2, 3, 0]  # item 1 was found twice, and is there once
    assert pools.start_G.tolist() == [0, 3, 5, 6]
    assert pools.row_M[pools.of_request(0)].tolist() == [0, 1, 3, 2, 3]


def test_items_are_scored_by_all_embeddings_of_their_outcome():
    found = lists(Pools.of(OUTCOME_BE, SLOTS_BE, FOUND), NOBODY)
    soft = {
        row: TEMPERATURE * np.log(0.75 * np.exp(x[0] / TEMPERATURE) + 0.25 * np.exp(x[1] / TEMPERATURE))
        for row, x in enumerate(X_ND)
    }
    # Places 4 and 5: the outcome with more begins. Item 3 would be the next of the other one when its turn is item 1's.
    assert [(row, at) for row, at, _ in found[0]] == [(3, 2), (0, 0), (2, 2), (1, 0)]
    assert [score for *_, score in found[0]] == pytest.approx([1.0, soft[0], 0.8, soft[1]], abs=1e-5)
    assert [(row, at) for row, at, _ in found[1]] == [(0, 0)]  # two were wanted


def test_what_a_request_refuses_is_refused_to_it_alone():
    pools = Pools.of(OUTCOME_BE, SLOTS_BE, FOUND)
    found = lists(pools, [np.array([HASH_N[3]]), np.array([HASH_N[2], 700], np.uint64)])
    assert [row for row, *_ in found[0]] == [2, 0]  # then its outcome has nothing left
    assert [row for row, *_ in found[1]] == [0]
    assert lists(pools, [NOBODY[0], HASH_N])[1] == []


def test_places_are_filled_before_anything_is_added_to_them():
    outcome_BE, slots_BE = np.array([[1, 2]]), np.array([[1, 1]])
    found = Found(np.array([0, 0]), np.array([0, 1]), np.array([[0, 1, 2, 3], [3, 2, 1, 0]]))
    pools = Pools.of(outcome_BE, slots_BE, found)
    e_BED = np.array([[[1, 0], [0, 1]]], np.float32)
    rows = [row for row, *_ in lists(pools, NOBODY[:1], e_BED, outcome_BE, slots_BE, depth=2)[0]]
    assert rows == [0, 3, 1, 2]


def listed(b, e_BED, outcome_BE, slots_BE, items, refused):
    """A list as it is told: one turn and one item after the other."""
    aims = list(dict.fromkeys(outcome_BE[b, at] for at in items))
    queues, places = [], []
    for aim in aims:
        mine = [at for at in items if outcome_BE[b, at] == aim]
        weights = np.array([slots_BE[b, at] for at in mine], np.float64)
        rows = {row for at in mine for row in items[at]} - refused
        fit = {row: e_BED[b, mine].astype(np.float64) @ X_ND[row] / TEMPERATURE for row in rows}
        score = {row: TEMPERATURE * np.log(np.average(np.exp(fit[row]), weights=weights)) for row in rows}
        queues.append(sorted(rows, key=lambda row, score=score: (-score[row], row)))
        places.append(int(weights.sum()))
    made = []
    for turn in turns(tuple(places)):
        left = [row for row in queues[turn] if row not in made]
        if not left:
            break
        made.append(left[0])
    return made


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 3), st.integers(1, 5), st.integers(1, 6))
def test_lists_are_what_a_look_at_one_item_after_the_other_gives(seed, requests, embeddings, k):
    rng = np.random.default_rng(seed)
    e_BED = rng.normal(size=(requests, embeddings, 2)).astype(np.float32)
    outcome_BE, slots_BE = rng.integers(-1, 2, (requests, embeddings)), rng.integers(0, 4, (requests, embeddings))
    slots_BE[:, 0] += 1
    request_Q, at_Q = np.nonzero(slots_BE)
    item_QK = np.array([rng.permutation([0, 1, 2, 3, -1, -1])[:k] for _ in request_Q])
    refused = [rng.permutation(4)[: rng.integers(3)] for _ in range(requests)]
    pools = Pools.of(outcome_BE, slots_BE, Found(request_Q, at_Q, item_QK))
    found = lists(pools, [HASH_N[rows] for rows in refused], e_BED, outcome_BE, slots_BE)
    for b in range(requests):
        items = {
            at: [row for row in rows if row >= 0]
            for of, at, rows in zip(request_Q.tolist(), at_Q.tolist(), item_QK.tolist(), strict=True)
            if of == b
        }
        assert [row for row, *_ in found[b]] == listed(b, e_BED, outcome_BE, slots_BE, items, set(refused[b].tolist()))
