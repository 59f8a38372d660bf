import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pinrec.budget import BudgetError, aims_of_steps, compress, normalised, places, slots, spread
from pinrec.config import Vocabulary

VOCABULARY = Vocabulary()
some_shares = st.dictionaries(
    st.sampled_from(VOCABULARY.outcomes), st.floats(0, 1e308, allow_nan=False), min_size=1
).filter(lambda shares: max(shares.values()) > 0)


@given(some_shares, st.integers(0, 500))
def test_every_share_gets_its_places_within_one(outcomes, k):
    shares = normalised(outcomes, VOCABULARY)
    assert math.isclose(sum(shares.values()), 1)
    assert list(shares.values()) == sorted(shares.values(), reverse=True)
    places = slots(list(shares.values()), k)
    assert sum(places) == k
    assert all(abs(n - share * k) < 1 for n, share in zip(places, shares.values(), strict=True))


def test_all_on_one_outcome_is_all_of_the_list():
    shares = normalised({"save": 3.0, "click": 0.0}, VOCABULARY)
    assert shares == {"save": 1.0}
    assert slots(list(shares.values()), 20) == [20]


def test_remainders_go_to_the_largest():
    assert slots([0.5, 0.3, 0.2], 11) == [6, 3, 2]


@pytest.mark.parametrize(
    ("outcomes", "field", "remedy"),
    [
        ({"purchase": 1.0}, "outcomes.purchase", "choose from click, save, share"),
        ({"impression": 1.0}, "outcomes.impression", "not an outcome"),
        ({"save": -0.1, "click": 1.0}, "outcomes.save", "at least 0"),
        ({"save": math.nan}, "outcomes.save", "finite"),
        ({"save": math.inf}, "outcomes.save", "finite"),
        ({"save": 0.0, "click": 0.0}, "outcomes", "sum to 0"),
        ({}, "outcomes", "sum to 0"),
    ],
)
def test_a_budget_that_cannot_be_spent_names_field_and_remedy(outcomes, field, remedy):
    with pytest.raises(BudgetError) as refused:
        normalised(outcomes, VOCABULARY)
    assert refused.value.field == field
    assert remedy in refused.value.remedy


@given(st.integers(1, 12), st.integers(1, 64))
def test_outcomes_in_turn_share_the_steps_evenly_and_none_is_left_out(outcomes, steps):
    dealt_SA = aims_of_steps(outcomes, steps, in_turn=True)
    of_each = np.bincount(dealt_SA[dealt_SA >= 0], minlength=outcomes)
    assert of_each.min() >= 1
    assert of_each.max() - of_each.min() <= 1
    assert len(of_each) == outcomes
    assert dealt_SA.shape == (steps, math.ceil(outcomes / steps))
    assert (dealt_SA[:, 0] == np.arange(steps) % outcomes).all(), "a step's first is fed back: it is never none"


@given(st.integers(1, 12), st.integers(1, 64))
def test_a_step_aims_at_all_outcomes_where_they_take_no_turns(outcomes, steps):
    assert aims_of_steps(outcomes, steps, in_turn=False).tolist() == [list(range(outcomes))] * steps


@given(st.integers(0, 500), st.integers(1, 64))
def test_an_outcomes_places_are_spread_evenly_earliest_first(places, embeddings):
    each = spread(places, embeddings)
    assert each.sum() == places
    assert each.max() - each.min() <= 1
    assert (np.diff(each) <= 0).all()


@given(some_shares, st.integers(0, 100), st.integers(1, 4), st.integers(1, 5))
def test_the_places_of_a_list_go_by_outcome_and_then_evenly(outcomes, k, steps, offsets):
    shares = normalised(outcomes, VOCABULARY)
    budget = tuple((VOCABULARY.action_index[name], share) for name, share in shares.items())
    outcome_E = np.tile(np.repeat([*(outcome for outcome, _ in budget), -1], offsets), steps)
    places_E = places(tuple(outcome_E.tolist()), budget, k)
    for (outcome, _), mine in zip(budget, slots(list(shares.values()), k), strict=True):
        assert places_E[outcome_E == outcome].tolist() == spread(mine, steps * offsets).tolist()
    assert not places_E[outcome_E == -1].any()
    with pytest.raises(ValueError, match="read-only"):
        places_E[0] = 1  # it is the next list's as well


def test_a_budget_that_a_caller_changes_stays_what_it_was_for_the_next_one():
    normalised({"save": 3.0, "click": 1.0}, VOCABULARY)["save"] = 0.0
    assert normalised({"save": 3.0, "click": 1.0}, VOCABULARY) == {"save": 0.75, "click": 0.25}


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.integers(1, 12), st.floats(-0.5, 1))
def test_compression_keeps_the_budget_and_leaves_no_alike_pair(seed, requests, embeddings, threshold):
    rng = np.random.default_rng(seed)
    e_BED = rng.normal(size=(requests, embeddings, 3)).astype(np.float32)
    e_BED /= np.linalg.norm(e_BED, axis=2, keepdims=True)
    outcome_BE = rng.integers(0, 3, (requests, embeddings))
    slots_BE = rng.integers(0, 4, (requests, embeddings))
    merged_BE = compress(e_BED, outcome_BE, slots_BE, threshold)
    for b in range(requests):
        for outcome in range(3):
            of_outcome = outcome_BE[b] == outcome
            assert merged_BE[b, of_outcome].sum() == slots_BE[b, of_outcome].sum()
        kept = np.nonzero(merged_BE[b])[0]
        cosine = e_BED[b, kept] @ e_BED[b, kept].T
        alike = np.triu(cosine > threshold + 1e-6, 1) & (outcome_BE[b, kept][:, None] == outcome_BE[b, kept])
        assert not alike.any()


def compressed(cosine_EE, outcome_E, slots_E, threshold):
    """Compression as it is told, one embedding at a time."""
    merged = [0] * len(slots_E)
    for i, mine in enumerate(slots_E.tolist()):
        like = [j for j in range(i) if merged[j] and outcome_E[j] == outcome_E[i] and cosine_EE[i, j] > threshold]
        merged[like[0] if like else i] += mine
    return merged


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 3), st.integers(1, 40), st.floats(-0.5, 1))
def test_compression_is_the_walk_that_it_says_it_is(seed, requests, embeddings, threshold):
    rng = np.random.default_rng(seed)
    e_BED = rng.normal(size=(requests, embeddings, 3)).astype(np.float32)
    e_BED /= np.linalg.norm(e_BED, axis=2, keepdims=True)
    outcome_BE, slots_BE = rng.integers(-1, 2, (requests, embeddings)), rng.integers(0, 3, (requests, embeddings))
    cosine_BEE = e_BED @ e_BED.transpose(0, 2, 1)
    assume(np.abs(cosine_BEE - threshold).min() > 1e-6)  # sums in another order differ by less
    before = slots_BE.copy()
    merged_BE = compress(e_BED, outcome_BE, slots_BE, threshold)
    assert (slots_BE == before).all()
    each = zip(cosine_BEE, outcome_BE, slots_BE, strict=True)
    assert merged_BE.tolist() == [compressed(*one, threshold) for one in each]


def test_an_alike_embedding_merges_into_the_first_kept_one_of_its_outcome():
    a, b = [1.0, 0.0], [0.0, 1.0]
    e_BED = np.array([[a, b, a, a]], np.float32)
    outcome_BE = np.array([[3, 3, 4, 3]])
    merged_BE = compress(e_BED, outcome_BE, np.array([[2, 2, 2, 1]]), 0.95)
    assert merged_BE.tolist() == [[3, 2, 2, 0]]
