import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from pinrec import quantised
from pinrec.quantised import QuantisedTable, int8_recall, quantise

TABLES = arrays(
    np.float32,
    array_shapes(min_dims=2, max_dims=2, max_side=8),
    elements=st.floats(-1, 1, width=32)
    | st.floats(-(2.0**99), 2.0**99, width=32)
    | st.floats(-(2.0**-143), 2.0**-143, width=32),
)


def unit_rows(items, width=32, seed=0):
    x_ND = np.random.default_rng(seed).normal(size=(items, width)).astype(np.float32)
    return x_ND / np.linalg.norm(x_ND, axis=1, keepdims=True)


@given(TABLES)
def test_no_number_moves_by_more_than_half_a_step(table):
    quantised_table = quantise(table)
    error_ND = np.abs(quantised_table[:].astype(np.float64) - table)
    largest_N1 = np.abs(table).max(axis=1, keepdims=True).astype(np.float64)
    # float32 itself rounds the product and the scale.
    assert (error_ND <= quantised_table.bound()[:, None] * (1 + 1e-6) + largest_N1 * 1e-6 + 1e-45).all()
    assert (quantised_table.bound()[:, None] <= largest_N1 / 253 + 1e-45).all()


@given(
    arrays(np.int8, (3, 5), elements=st.integers(-127, 127)),
    st.lists(st.integers(-60, 60), min_size=3, max_size=3),
)
def test_rows_of_127_steps_come_back_as_they_were(steps, exponents):
    steps[:, 0] = (127, -127, 127)
    table = steps * np.ldexp(np.float32(1), exponents).astype(np.float32)[:, None]
    assert (quantise(table)[:] == table).all()


@given(TABLES)
def test_quantising_what_was_quantised_changes_nothing_much(table):
    once = quantise(table)[:]
    np.testing.assert_allclose(quantise(once)[:], once, rtol=1e-5, atol=1e-44)


def test_rows_of_zeros_stay_zeros_and_a_table_may_be_empty():
    table = np.zeros((2, 4), np.float32)
    table[1, 2] = 3
    assert (quantise(table)[:] == table).all()
    assert quantise(table[:0]).shape == (0, 4)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_row_that_is_not_finite_is_named_wherever_it_is(bad, monkeypatch):
    monkeypatch.setattr(quantised, "CHUNK", 3)
    table = unit_rows(10)
    table[7, 3] = bad
    with pytest.raises(ValueError, match="row 7 has NaN or infinity"):
        quantise(table)


def test_a_large_table_is_quantised_in_parts_as_in_one(monkeypatch):
    table = unit_rows(10)
    whole = quantise(table)
    monkeypatch.setattr(quantised, "CHUNK", 3)
    assert (quantise(table).stored == whole.stored).all()


def test_rows_are_read_by_number_slice_and_array_from_a_mapped_file(tmp_path):
    table = quantise(unit_rows(50))
    np.save(tmp_path / "table.npy", table.stored, allow_pickle=False)
    mapped = QuantisedTable(np.load(tmp_path / "table.npy", mmap_mode="r", allow_pickle=False))
    assert (len(mapped), mapped.shape) == (50, (50, 32))
    for rows in (7, slice(3, 9), np.array([4, 4, -1]), np.array([], np.int64)):
        assert mapped[rows].dtype == np.float32
        assert (mapped[rows] == table[:][rows]).all()
        assert (mapped.bound(rows) == table.bound()[rows]).all()
    assert (tmp_path / "table.npy").stat().st_size == 128 + 50 * (4 + 32)


def test_recall_is_the_share_of_the_exact_best_that_int8_finds():
    table, q_ED = unit_rows(2_000), unit_rows(20, seed=1)
    exact = np.argsort(-(q_ED @ table.T), axis=1)[:, :50]
    found = np.argsort(-(q_ED @ quantise(table)[:].T), axis=1)[:, :50]
    expected = np.mean([len(set(a) & set(b)) / 50 for a, b in zip(exact, found, strict=True)])
    assert 0.95 < expected < 1
    assert int8_recall(table, q_ED, 50) == pytest.approx(expected, abs=0.003)
    assert int8_recall(table[:30], q_ED, 50) == 1.0
    near = unit_rows(1) + 1e-4 * unit_rows(2_000)
    assert int8_recall(near / np.linalg.norm(near, axis=1, keepdims=True), q_ED, 50) < 0.5
