from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pinrec.pooling import Found, pooled

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
    score_QK=np.array([[1, 0.8], [1, 0.8], [1, 0.8], [1, -np.inf]], np.float32),
    item_QK=np.array([[0, 1], [3, 1], [3, 2], [0, -1]]),
)


def pools():
    return pooled(VIEW, E_BED, OUTCOME_BE, SLOTS_BE, FOUND)


def test_items_are_scored_by_all_embeddings_of_their_outcome():
    found = pools()
    assert found.request_G.tolist() == [0, 0, 1]
    assert found.places_G.tolist() == [4, 5, 2]
    assert found.item_GM.tolist() == [[0, 1, 3], [2, 3, -1], [0, -1, -1]]  # item 1 was found twice, and is there once
    wanted = [
        TEMPERATURE * np.log(0.75 * np.exp(x[0] / TEMPERATURE) + 0.25 * np.exp(x[1] / TEMPERATURE))
        for x in X_ND[[0, 1, 3]]
    ]
    assert found.score_GM[0] == pytest.approx(wanted, abs=1e-5)
    assert found.score_GM[1, :2] == pytest.approx([0.8, 1.0], abs=1e-5)  # a lone embedding's is the inner product
    assert found.aimed(np.array([0, 0, 0, 1, 2]), np.array([0, 1, 2, 1, 0])).tolist() == [0, 0, 1, 2, 0]
    assert np.isneginf(found.score_GM[found.item_GM == -1]).all()


def test_what_a_request_refuses_is_refused_to_it_alone():
    found = pools().without(VIEW, np.array([0, 1, 1]), np.array([HASH_N[3], HASH_N[2], 700], np.uint64))
    assert found.item_GM.tolist() == [[0, 1, -1], [2, -1, -1], [0, -1, -1]]
    only = pools().only(0, np.array([False, True, False, True]))
    assert only.item_GM.tolist() == [[-1, 1, 3], [-1, 3, -1], [0, -1, -1]]


def test_the_best_come_first_and_what_is_not_there_last():
    found = pools().without(VIEW, np.array([0]), HASH_N[:1])
    assert np.take_along_axis(found.item_GM, found.best(2), 1).tolist() == [[3, 1], [3, 2], [0, -1]]


@given(st.integers(0, 2**32 - 1), st.integers(1, 3), st.integers(1, 5), st.integers(1, 6))
def test_pools_are_what_a_look_at_one_item_after_the_other_gives(seed, requests, embeddings, k):
    rng = np.random.default_rng(seed)
    e_BED = rng.normal(size=(requests, embeddings, 2)).astype(np.float32)
    outcome_BE, slots_BE = rng.integers(-1, 2, (requests, embeddings)), rng.integers(1, 4, (requests, embeddings))
    request_Q, at_Q = np.nonzero(slots_BE)
    item_QK = np.array([rng.permutation([0, 1, 2, 3, -1, -1])[:k] for _ in request_Q])
    score_QK = np.einsum("qd,qkd->qk", e_BED[request_Q, at_Q], X_ND[item_QK])
    refused = [(b, row) for b in range(requests) for row in range(4) if rng.random() < 0.3]
    of, rows = np.array(refused, np.int64).reshape(-1, 2).T
    pools = pooled(VIEW, e_BED, outcome_BE, slots_BE, Found(request_Q, at_Q, score_QK, item_QK))
    left = pools.without(VIEW, of, HASH_N[rows])
    group, place = np.nonzero(left.item_GM >= 0)
    outcome_T = outcome_BE[left.request_G[group], left.aimed(group, place)].tolist()
    keys = zip(left.request_G[group].tolist(), outcome_T, left.item_GM[group, place].tolist(), strict=True)
    scores = dict(zip(keys, left.score_GM[group, place].tolist(), strict=True))
    assert len(scores) == len(group), "each item once"
    assert np.isneginf(left.score_GM[left.item_GM < 0]).all()
    wanted = {}
    for b, at, items in zip(request_Q.tolist(), at_Q.tolist(), item_QK.tolist(), strict=True):
        mine = outcome_BE[b] == outcome_BE[b, at]
        for row in items:
            if row >= 0 and (b, row) not in refused:
                fit = np.exp(e_BED[b, mine] @ X_ND[row] / TEMPERATURE)
                mean = np.average(fit.astype(np.float64), weights=slots_BE[b, mine])
                wanted[b, int(outcome_BE[b, at]), row] = TEMPERATURE * np.log(mean)
    assert scores == pytest.approx(wanted, abs=1e-4)
