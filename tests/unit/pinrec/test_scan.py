"""The scan of a small catalogue finds what sorting everything finds, ties and gaps included."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pinrec.scan import scan


def sorted_out(x_ND: np.ndarray, q_ED: np.ndarray, k: int) -> np.ndarray:
    """int64[E, k]: the same by sorting; products are exact, as the numbers are small and whole."""
    order_EN = np.argsort(-(q_ED @ x_ND.T), axis=1, kind="stable")[:, :k]
    return np.pad(order_EN, ((0, 0), (0, k - order_EN.shape[1])), constant_values=-1)


@given(
    seed=st.integers(0, 2**32 - 1),
    items=st.integers(0, 700),
    queries=st.integers(0, 5),
    k=st.integers(0, 300),
    largest=st.sampled_from([0, 1, 9, 1_000]),
)
def test_the_best_come_first_and_of_equal_ones_the_lower_row(seed, items, queries, k, largest):
    rng = np.random.default_rng(seed)
    x_ND, q_ED = (rng.integers(-largest, largest + 1, (n, 3)).astype(np.float32) for n in (items, queries))
    score_EK, row_EK = scan(x_ND, q_ED, k)
    assert row_EK.tolist() == sorted_out(x_ND, q_ED, k).tolist()
    found = row_EK >= 0
    assert (score_EK[found] == (q_ED @ x_ND.T)[np.nonzero(found)[0], row_EK[found]]).all()
    assert (score_EK[~found] == -np.inf).all()


def test_queries_are_scanned_together_as_alone():
    rng = np.random.default_rng(0)
    x_ND, q_ED = (rng.integers(-5, 6, (n, 4)).astype(np.float32) for n in (9_000, 300))  # more than one block of scores
    assert scan(x_ND, q_ED, 40)[1].tolist() == sorted_out(x_ND, q_ED, 40).tolist()


@pytest.mark.parametrize("bad", [np.nan, -np.inf])
def test_what_is_no_number_is_never_found(bad):
    x_ND = np.array([[1.0], [bad], [-2.0]], np.float32)
    score_EK, row_EK = scan(x_ND, np.ones((1, 1), np.float32), 3)
    assert row_EK.tolist() == [[0, 2, -1]]
    assert score_EK.tolist() == [[1.0, -2.0, -np.inf]]
