"""The measures against slow ones that follow their definitions word by word."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pinrec.measures import Difference, measure, paired_bootstrap
from pinrec.protocols import Cases
from tests.unit.pinrec.plain_figures import figures_of

ACTIONS = ("click", "save", "hide")
MOST_ITEMS = 14


class Fixed:
    """Answers from arrays, by user."""

    def __init__(self, lists, found):
        self.lists, self.found = lists, found

    def ranked(self, cases, k):
        return self.lists[cases.user, :k]

    def generated(self, cases, embeddings, k):
        return self.found[cases.user]


def pad(rows, n):
    return [*rows, *[-1] * n][:n]


@st.composite
def retrievals(draw, embeddings, k):
    """Cases, lists of embeddings x k and what each embedding found; short ones are padded with -1."""
    items = st.integers(0, MOST_ITEMS - 1)
    users = draw(st.integers(1, 5))
    targets, outcomes, lists, found = [], [], [], []
    for _ in range(users):
        rows = sorted(draw(st.sets(items, min_size=1, max_size=6)))
        targets.append(np.array(rows))
        # hide is engaged with by nobody
        met = [draw(st.sampled_from([(1, 0, 0), (0, 1, 0), (1, 1, 0)])) for _ in rows]
        outcomes.append(np.array(met, bool))
        lists.append(pad(draw(st.lists(items, unique=True)), embeddings * k))
        found.append([pad(draw(st.lists(items, unique=True, max_size=k)), k) for _ in range(embeddings)])
    zeros = np.zeros(users, np.int64)
    cases = Cases(np.arange(users), zeros, zeros + 1, targets, outcomes, [np.zeros(0, np.int64)] * users, ACTIONS)
    return cases, np.array(lists, np.int64), np.array(found, np.int64)


def slow_figures(targets, outcomes, listed, found, k):
    met = {
        item: {name for name, with_it in zip(ACTIONS, mine, strict=True) if with_it}
        for item, mine in zip(targets.tolist(), outcomes, strict=True)
    }
    return figures_of(listed, found, met, ACTIONS, k)


@settings(max_examples=150, deadline=None)
@given(st.data(), st.integers(2, 3), st.integers(1, 4))
def test_figures_are_those_of_their_definitions(data, embeddings, k):
    cases, lists, found = data.draw(retrievals(embeddings, k))
    per_user = measure(Fixed(lists, found), cases, embeddings, k)
    expected = [
        slow_figures(cases.targets[u], cases.outcomes[u], lists[u], found[u].tolist(), k) for u in range(len(cases))
    ]
    assert set(per_user.figures) == set(expected[0])
    for name, values in per_user.figures.items():
        np.testing.assert_allclose(values, [figures[name] for figures in expected], atol=1e-12, err_msg=name)
    shown = {row for row in lists[:, :k].flat if row >= 0}
    mean = per_user.mean()
    assert mean["distinct_items"] == len(shown)
    assert mean["users"] == len(cases)
    assert mean["targets"] == cases.target_count
    for name in (f"unordered@{k}:save", f"unordered@{k}:hide"):
        those = [figures[name] for figures in expected if not math.isnan(figures[name])]
        assert mean[name] == pytest.approx(np.mean(those)) if those else math.isnan(mean[name])


def many_cases(users):
    one = np.array([3])
    zeros = np.zeros(users, np.int64)
    return Cases(
        np.arange(users), zeros, zeros + 1, [one] * users, [np.ones((1, 1), bool)] * users, [one] * users, ("a",)
    )


def test_users_beyond_one_batch_are_all_measured_and_progress_is_told():
    users, said = 600, []
    lists = np.tile(np.arange(10), (users, 1))
    lists[300:] += 4
    found = measure(Fixed(lists, None), many_cases(users), progress=lambda done, of: said.append((done, of)))
    assert found.figures["hr@10"].sum() == 300
    assert found.figures["ndcg@10"][:300] == pytest.approx(1 / math.log2(5))
    assert said[0][1] == said[-1][0] == 600
    assert len(said) > 1


def test_identical_models_do_not_differ_and_zero_lies_in_the_interval():
    figures = np.random.default_rng(0).random(200)
    found = paired_bootstrap(figures, figures)
    assert (found.low, found.high, found.difference, found.decided) == (0.0, 0.0, 0.0, False)


def test_a_gain_of_every_user_is_decided_and_its_sign_is_that_of_b():
    a = np.random.default_rng(0).random(300)
    gain, loss = paired_bootstrap(a, a + 0.1), paired_bootstrap(a + 0.1, a)
    assert gain.low == pytest.approx(0.1)
    assert gain.decided and loss.decided  # noqa: PT018
    assert loss.difference == pytest.approx(-0.1)
    assert gain.relative == pytest.approx(0.1 / a.mean())


def test_the_interval_holds_the_true_difference_as_often_as_it_says():
    rng, truth, held = np.random.default_rng(1), 0.05, 0
    for _ in range(200):
        shared = rng.random(120)
        a, b = shared + rng.normal(0, 0.2, 120), shared + rng.normal(truth, 0.2, 120)
        found = paired_bootstrap(a, b, draws=300)
        held += found.low <= truth <= found.high
    assert 178 <= held <= 199  # 95 % of 200; its deviation is 3


def test_pairing_makes_the_interval_narrow():
    rng = np.random.default_rng(2)
    a = rng.random(400)
    b = a + rng.normal(0.02, 0.01, 400)
    paired, shuffled = paired_bootstrap(a, b), paired_bootstrap(a, rng.permutation(b))
    assert paired.high - paired.low < 0.1 * (shuffled.high - shuffled.low)


def test_the_same_figures_give_the_same_interval():
    a, b = np.random.default_rng(3).random((2, 50))
    assert paired_bootstrap(a, b) == paired_bootstrap(a, b)


def test_users_without_the_figure_under_both_are_left_out():
    nan = np.nan
    found = paired_bootstrap(np.array([0.0, nan, 1.0, 0.5]), np.array([1.0, 1.0, nan, 1.0]))
    assert (found.mean_a, found.mean_b) == (0.25, 1.0)


def test_figures_of_other_users_are_refused():
    with pytest.raises(ValueError, match="users: 2 and 3 figures; compare models on the same users"):
        paired_bootstrap(np.zeros(2), np.zeros(3))
    with pytest.raises(ValueError, match="users: none has this figure under both models"):
        paired_bootstrap(np.array([np.nan]), np.zeros(1))


def test_a_difference_from_nothing_has_no_ratio():
    assert math.isnan(Difference(0.0, 0.5, 0.4, 0.6).relative)
