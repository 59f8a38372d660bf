from types import SimpleNamespace

import numpy as np
import pytest

from pinrec.pooling import Found, pooled

TEMPERATURE = 0.1
X_ND = np.array([[1, 0], [0.8, 0.6], [0.6, 0.8], [0, 1]], np.float32)
VIEW = SimpleNamespace(
    vectors=lambda row: X_ND[row], bundle=SimpleNamespace(model=SimpleNamespace(temperature=TEMPERATURE))
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
    assert found.at_GM[0].tolist() == [0, 0, 1]
    assert np.isneginf(found.score_GM[found.item_GM == -1]).all()


def test_what_a_request_refuses_is_refused_to_it_alone():
    found = pools().without(np.array([0, 1, 1]), np.array([3, 2, 700]))
    assert found.item_GM.tolist() == [[0, 1, -1], [2, -1, -1], [0, -1, -1]]
    only = pools().only(0, np.array([False, True, False, True]))
    assert only.item_GM.tolist() == [[-1, 1, 3], [-1, 3, -1], [0, -1, -1]]


def test_the_best_come_first_and_what_is_not_there_last():
    best = pools().without(np.array([0]), np.array([0])).best(2)
    assert best.item_GM.tolist() == [[3, 1], [3, 2], [0, -1]]
    assert best.at_GM[0].tolist() == [1, 0]
