from dataclasses import replace

import numpy as np
import pytest

from pinrec.index import IndexFileError, ItemIndex
from pinrec.quantised import quantise


def table(items, width=16, seed=0):
    rng = np.random.default_rng(seed)
    # Around centres, as item vectors are: uniform noise has no neighbourhoods for lists to follow.
    x_ND = rng.normal(size=(20, width))[rng.integers(0, 20, items)] + 0.5 * rng.normal(size=(items, width))
    return (x_ND / np.linalg.norm(x_ND, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def item_table():
    return table(3_000)


def test_a_small_catalogue_is_searched_exactly(item_table):
    index = ItemIndex.build(item_table)
    scores, rows = index.search(item_table[:5], 3)
    exact = np.argsort(-(item_table[:5] @ item_table.T), axis=1)[:, :3]
    assert rows.tolist() == exact.tolist()
    assert scores[:, 0] == pytest.approx(np.ones(5), abs=1e-5)
    assert (index.report.kind, index.report.recall) == ("exact", 1.0)


def test_asking_for_more_than_there_is_pads_with_minus_one():
    index = ItemIndex.build(table(3))
    _, rows = index.search(table(3)[:1], 5)
    assert sorted(rows[0].tolist()) == [-1, -1, 0, 1, 2]


@pytest.mark.parametrize("mmap", [False, True])
@pytest.mark.parametrize("exact_below", [10, 10_000], ids=["ivf", "exact"])
def test_a_saved_index_answers_the_same(item_table, tmp_path, mmap, exact_below):
    index = ItemIndex.build(item_table, exact_below=exact_below)
    index.save(tmp_path / "index.faiss")
    again = ItemIndex.load(tmp_path / "index.faiss", item_table, mmap)
    assert (len(again), again.width) == (3_000, 16)
    for one, other in zip(index.search(item_table[:9], 20), again.search(item_table[:9], 20), strict=True):
        assert (one == other).all()


@pytest.mark.parametrize("exact_below", [10, 10_000], ids=["ivf", "exact"])
def test_a_mapped_index_is_saved_in_full(item_table, tmp_path, exact_below):
    ItemIndex.build(item_table, exact_below=exact_below).save(tmp_path / "first")
    mapped = ItemIndex.load(tmp_path / "first", item_table, mmap=True)
    before = mapped.search(item_table[:9], 20)
    mapped.save(tmp_path / "second")
    assert (tmp_path / "second").read_bytes() == (tmp_path / "first").read_bytes()
    for one, other in zip(before, mapped.search(item_table[:9], 20), strict=True):
        assert (one == other).all()


def test_lists_are_visited_until_recall_is_reached(item_table):
    index = ItemIndex.build(item_table[:2_900], exact_below=10, recall_goal=0.98)
    assert index.report.kind == "ivf"
    assert index.report.recall >= 0.98
    exact = ItemIndex.build(item_table[:2_900])
    q_ED = item_table[2_900:]
    found = index.search(q_ED, 100)[1]
    wanted = exact.search(q_ED, 100)[1]
    assert np.mean([len(set(a) & set(b)) / 100 for a, b in zip(found, wanted, strict=True)]) > 0.9


def test_vectors_that_lie_close_together_are_found_too():
    """As those of a model that has hardly been trained."""
    x_ND = table(20_000, width=32) + 6 * table(1, width=32)
    x_ND /= np.linalg.norm(x_ND, axis=1, keepdims=True)
    report = ItemIndex.build(x_ND, exact_below=0).report
    assert report.recall >= 0.98
    assert report.kind != "exact", "and without a scan of all vectors"


def noise(items, width):
    x_ND = np.random.default_rng(0).normal(size=(items, width)).astype(np.float32)
    return x_ND / np.linalg.norm(x_ND, axis=1, keepdims=True)


def test_of_vectors_without_neighbourhoods_all_codes_are_scanned(tmp_path):
    noise_ND = noise(12_000, 64)
    index = ItemIndex.build(noise_ND)
    assert index.report.kind == "codes"
    assert index.recall(noise_ND) == index.report.recall >= 0.98
    scores, rows = index.search(noise_ND[:9], 5)
    assert rows[:, 0].tolist() == list(range(9))
    np.testing.assert_allclose(scores, np.take_along_axis(noise_ND[:9] @ noise_ND.T, rows, 1), atol=1e-6)
    index.save(tmp_path / "index.faiss")
    assert (tmp_path / "index.faiss").stat().st_size < noise_ND.nbytes / 5
    again = ItemIndex.load(tmp_path / "index.faiss", noise_ND)
    assert again.search(noise_ND[:9], 5)[1].tolist() == rows.tolist()


def test_a_goal_that_no_codes_reach_is_reached_by_the_vectors():
    report = ItemIndex.build(noise(3_000, 16), exact_below=0, recall_goal=1.01).report
    assert (report.kind, report.recall) == ("exact", 1.0)


def test_no_query_finds_nothing():
    x_ND = noise(3_000, 32)
    for exact_below in (0, 10_000):
        scores, rows = ItemIndex.build(x_ND, exact_below=exact_below).search(x_ND[:0], 5)
        assert scores.shape == rows.shape == (0, 5)


def test_a_quantised_table_scores_what_codes_find(tmp_path):
    x_ND = table(6_000, width=32)
    stored = quantise(x_ND)
    index = ItemIndex.build(x_ND, exact_below=0).over(stored)
    assert index.report.kind != "exact"
    scores, rows = index.search(x_ND[:4], 10)
    np.testing.assert_allclose(scores, np.einsum("ekd,ed->ek", stored[rows], x_ND[:4]), atol=1e-6)
    index.save(tmp_path / "index.faiss")
    again = ItemIndex.load(tmp_path / "index.faiss", stored, report=replace(index.report, looked_at=8))
    assert again.search(x_ND[:4], 10)[1][:, 0].tolist() == rows[:, 0].tolist()


@pytest.mark.parametrize("kind", ["ivf", "codes"])
def test_whatever_is_asked_for_is_scored_by_the_table_and_in_order(kind):
    x_ND = table(6_000, width=32) if kind == "ivf" else noise(6_000, 32)
    index = ItemIndex.build(x_ND, exact_below=0)
    assert index.report.kind == kind
    for k in (1, 7, 100, 6_000, 7_000):
        scores, rows = index.search(x_ND[:4], k)
        assert scores.shape == rows.shape == (4, k)
        for score_K, row_K, q_D in zip(scores, rows, x_ND[:4], strict=True):
            there = row_K >= 0
            assert there[: there.sum()].all(), "what is missing stands behind the rest"
            assert len(set(row_K[there].tolist())) == there.sum()
            np.testing.assert_allclose(score_K[there], x_ND[row_K[there]] @ q_D, atol=1e-6)
            assert (np.diff(score_K[there]) <= 0).all()


def test_recall_sees_an_index_over_a_permuted_table(item_table):
    index = ItemIndex.build(item_table)
    assert index.recall(item_table) == 1.0
    assert index.recall(item_table[::-1]) < 0.5


def test_what_is_no_index_is_refused(tmp_path):
    (tmp_path / "index.faiss").write_bytes(b"nothing of the kind")
    with pytest.raises(IndexFileError, match=r"index\.faiss"):
        ItemIndex.load(tmp_path / "index.faiss", table(3))


def drifted(table_ND, by, seed=1):
    x_ND = table_ND + by * np.random.default_rng(seed).normal(size=table_ND.shape) / table_ND.shape[1] ** 0.5
    return (x_ND / np.linalg.norm(x_ND, axis=1, keepdims=True)).astype(np.float32)


def centroids(index):
    return index._codes.quantizer.reconstruct_n(0, index._codes.nlist)


def test_an_index_takes_over_the_lists_of_an_older_one_and_finds_new_and_moved_items(item_table, tmp_path):
    older = ItemIndex.build(item_table, exact_below=0)
    table_ND = np.concatenate((drifted(item_table[::-1], 0.1), table(300, seed=5)))  # in another order, and more
    stays_N = np.concatenate((np.arange(3_000)[::-1], np.full(300, -1)))
    stays_N[50:80] = -1
    index = ItemIndex.build(table_ND, exact_below=0, like=older, stays_N=stays_N)
    np.testing.assert_array_equal(centroids(index), centroids(older))
    assert len(index) == 3_300
    assert index.recall(table_ND) == index.report.recall >= 0.98
    _, rows = index.search(table_ND[[60, 3_100]], 1)
    assert rows[:, 0].tolist() == [60, 3_100]
    index.save(tmp_path / "index.faiss")
    again = ItemIndex.load(tmp_path / "index.faiss", table_ND)
    assert again.search(table_ND[:5], 7)[1].tolist() == index.search(table_ND[:5], 7)[1].tolist()
    assert index.report.nprobe <= 2 * older.report.nprobe == 2 * index.report.trained_nprobe
    once_more = ItemIndex.build(table_ND, exact_below=0, like=again, stays_N=np.arange(3_300))
    np.testing.assert_array_equal(centroids(once_more), centroids(older))


def test_lists_are_kept_where_it_is_codes_that_no_longer_fit():
    """Items of few kinds are many alike: what tells them apart is little, and codes lose it first."""
    rng = np.random.default_rng(0)
    kinds_ND = rng.normal(size=(10, 32))[rng.integers(0, 10, 20_000)]
    x_ND = kinds_ND + 0.3 * np.arange(1, 33) ** -0.5 * rng.normal(size=kinds_ND.shape)
    older = ItemIndex.build((x_ND / np.linalg.norm(x_ND, axis=1, keepdims=True)).astype(np.float32), exact_below=0)
    moved_ND = drifted(x_ND / np.linalg.norm(x_ND, axis=1, keepdims=True), 0.1)
    index = ItemIndex.build(moved_ND, exact_below=0, like=older, stays_N=np.arange(20_000))
    np.testing.assert_array_equal(centroids(index), centroids(older))
    assert index.report.looked_at > older.report.looked_at
    assert index.recall(moved_ND) == index.report.recall >= 0.98


def test_lists_that_no_longer_fit_are_found_anew(item_table):
    older = ItemIndex.build(item_table, exact_below=0)
    other = table(3_000, seed=9)
    wrong = np.random.default_rng(2).permutation(3_000)
    index = ItemIndex.build(other, exact_below=0, like=older, stays_N=wrong)
    assert index.recall(other) == index.report.recall >= 0.98


def test_an_index_without_lists_or_of_another_size_is_no_model(item_table):
    exact, small = ItemIndex.build(item_table), ItemIndex.build(item_table[:200], exact_below=0)
    for older in (exact, small):
        index = ItemIndex.build(item_table, exact_below=0, like=older, stays_N=np.full(3_000, -1))
        assert len(centroids(index)) == len(centroids(ItemIndex.build(item_table, exact_below=0)))
        assert index.report.recall >= 0.98
