"""Places for new items: as many as declared, within the filters, never twice, the same for the same request."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pinrec.config import GenerationConfig
from pinrec.delta import Delta, View
from pinrec.generation import generate
from pinrec.items import Item
from pinrec.retrieval import Filter
from tests.small_bundle import TOPICS, request, small_bundle

BUNDLE = small_bundle()
NEW = {BUNDLE.catalogue.item_ids[row] for row in BUNDLE.new_rows}


def lists(requests, share):
    return generate(BUNDLE, requests, GenerationConfig(explore_share=share))


def test_new_items_are_those_nobody_engaged_with_the_newest_first():
    assert BUNDLE.new_rows.tolist() == list(range(119, 99, -1))


@settings(max_examples=25, deadline=None)
@given(
    share=st.floats(0.0, 0.5),
    k=st.integers(1, 60),
    seed=st.integers(0, 1_000),
    categories=st.sets(st.sampled_from(TOPICS), max_size=2),
    exclude=st.sets(st.integers(95, 119), max_size=20),
)
def test_the_share_and_the_filters_hold_and_no_item_comes_twice(share, k, seed, categories, exclude):
    filters = {"categories": frozenset(categories), "exclude": frozenset(f"item-{i}" for i in exclude)}
    asked = request(12, seed, k=k, user_id=f"user-{seed}", **filters)
    (plain,), (listed,) = lists([asked], 0.0), lists([asked], share)
    assert len(listed) == len(plain)
    rows = [one.row for one in listed]
    assert len(set(rows)) == len(rows)
    assert Filter.of(View(BUNDLE), asked).left(View(BUNDLE))[rows].all()
    tried = [one for one in listed if one.explored]
    assert len(tried) <= len(listed) * share + 1
    assert {one.item_id for one in tried} <= NEW
    chosen = [one.row for one in listed if not one.explored]
    assert chosen == [one.row for one in plain[: len(chosen)]], "what the model chose keeps its order"
    left = NEW - {one.item_id for one in plain} - asked.exclude
    if not categories and len(left) > k:
        assert len(tried) >= int(len(listed) * share)


def test_over_many_lists_the_share_is_exact():
    requests = [request(8, seed, k=10, user_id=f"user-{seed}") for seed in range(300)]
    tried = sum(one.explored for listed in lists(requests, 0.05) for one in listed)
    assert tried / 3_000 == pytest.approx(0.05, abs=0.01)
    places = [at for listed in lists(requests, 0.05) for at, one in enumerate(listed) if one.explored]
    assert {0, 9} <= set(places), "anywhere in the list"


def test_the_same_request_gets_the_same_items_in_any_company():
    requests = [request(8, seed, k=10, user_id=f"user-{seed}") for seed in range(6)]
    together = lists(requests, 0.4)
    for asked, listed in zip(requests, together, strict=True):
        (alone,) = lists([replace(asked)], 0.4)
        assert [one.row for one in alone if one.explored] == [one.row for one in listed if one.explored]
    assert len({tuple(one.row for one in listed if one.explored) for listed in together}) == 6


def test_items_that_are_new_since_the_bundle_are_explored_and_deleted_ones_are_not():
    gone = {BUNDLE.catalogue.item_ids[row]: None for row in BUNDLE.new_rows[:10]}
    delta = Delta.of(BUNDLE, {"just in": Item("just in", "A new thing"), **gone}, 10)
    requests = [request(8, seed, k=10, user_id=f"user-{seed}") for seed in range(60)]
    found = generate(BUNDLE, requests, GenerationConfig(explore_share=0.5), delta=delta)
    tried = {one.item_id for listed in found for one in listed if one.explored}
    assert "just in" in tried
    assert not tried & gone.keys()
