import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pinrec.config import ModelConfig, Vocabulary
from pinrec.hashing import BUCKETS_PER_OCTAVE, hash_id, hash_numbers, signed_log2
from pinrec.items import Catalogue, Item, query_bag
from pinrec.model import PinRecModel

CONFIG = ModelConfig(bag_size=4, bag_buckets=1_000, content_width=2)


def test_rows_finds_items_by_hash_and_answers_minus_one_for_others():
    catalogue = Catalogue.of([Item("b"), Item("a"), Item("c")], CONFIG)
    assert [catalogue.row(i) for i in ("a", "b", "c", "d")] == [1, 0, 2, -1]
    hashes = np.array([[hash_id("c"), hash_id("x")], [hash_id("b"), hash_id("a")]], np.uint64)
    assert catalogue.rows(hashes).tolist() == [[2, -1], [0, 1]]
    assert Catalogue.of([], CONFIG).rows(hashes).tolist() == [[-1, -1], [-1, -1]]


def test_a_saved_catalogue_loads_as_it_was(tmp_path):
    items = [
        Item("ä\u2028", "a title\nof two lines", ("x", "y"), (0.5, -1.0), 12.5, "ann", {"year": 1995.0}),
        Item("plain"),
    ]
    catalogue = Catalogue.of(items, CONFIG)
    catalogue.save(tmp_path)
    loaded = Catalogue.load(tmp_path)
    assert loaded.item_ids == catalogue.item_ids
    assert loaded.titles == catalogue.titles
    assert loaded.categories == [("x", "y"), ()]
    for name in ("hashes", "created_at", "bags", "content", "has_content"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(catalogue, name))
        assert getattr(loaded, name).dtype == getattr(catalogue, name).dtype


def test_a_query_shares_features_with_the_title_that_has_its_words():
    bag = Catalogue.of([Item("a", "Red cup for tea")], CONFIG).bags[0]
    assert set(query_bag("RED cup", CONFIG)) - {0} <= set(bag)
    assert (query_bag("one two three four five six", CONFIG) > 0).all()


def test_items_of_which_nothing_is_known_have_that_in_common_before_events_tell_them_apart():
    items = [Item(f"i{n}") for n in range(50)] + [Item(f"t{n}", f"word{n}") for n in range(50)]
    bags = Catalogue.of(items, CONFIG).bags
    assert (bags[:50] == bags[0]).all()
    assert bags[0].any()
    assert not (bags[50:] == bags[0]).all(1).any()
    config = ModelConfig(bag_buckets=1_000)
    torch.manual_seed(0)
    table = PinRecModel(config, Vocabulary()).item_table(Catalogue.of(items, config))
    unknown, told = ((part @ part.T)[~np.eye(50, dtype=bool)].mean() for part in (table[:50], table[50:]))
    assert unknown > 0.9
    assert told < 0.1


@pytest.mark.parametrize("embedding", [(1.0,), (1.0, 2.0, 3.0), (1.0, float("nan"))])
def test_an_embedding_of_another_length_or_not_finite_is_an_error_naming_the_item(embedding):
    with pytest.raises(ValueError, match=r"embedding: item 'cup' has .* content_width is 2"):
        Catalogue.of([Item("cup", embedding=embedding)], CONFIG)


def test_an_id_given_twice_is_an_error_naming_it():
    with pytest.raises(ValueError, match="item_id: 'cup' is there twice"):
        Catalogue.of([Item("cup"), Item("x"), Item("cup")], CONFIG)


NUMBERS = st.floats(allow_nan=False, allow_infinity=False)


def shared(one: float, other: float) -> int:
    return len(set(hash_numbers({"year": one})) & set(hash_numbers({"year": other})))


@given(st.floats(-1e300, 1e300), st.floats(-0.0019, 0.0019))
def test_near_numbers_share_a_feature_at_every_resolution(number, difference):
    # An octave is 128 buckets at the finest, and a straight line from one power of two to the next.
    assert shared(number, number * (1 + difference)) >= len(BUCKETS_PER_OCTAVE)


@given(st.lists(NUMBERS, min_size=2, max_size=2))
def test_the_scale_of_numbers_is_odd_monotone_and_near_the_logarithm(numbers):
    low, high = sorted(numbers)
    assert signed_log2(low) <= signed_log2(high)
    assert signed_log2(-low) == -signed_log2(low)
    assert abs(signed_log2(low)) == pytest.approx(math.log2(1 + abs(low)), abs=0.0861)


def test_near_years_share_more_than_far_ones_and_signs_and_names_tell_numbers_apart():
    assert shared(1995, 1995) == 4
    assert shared(1995, 1996) >= shared(1995, 2001) >= shared(1995, 1960) == 2
    assert shared(9_000, 90_000) == 0
    assert shared(40, -40) == 0
    assert not set(hash_numbers({"year": 7.0})) & set(hash_numbers({"price": 7.0}))
    assert shared(0.0, -0.0) == 4


def test_every_kind_of_feature_is_in_the_bag():
    config = CONFIG.model_copy(update={"bag_size": 16, "bag_buckets": 1 << 20})
    plain = Item("a", "red cup", ("tea",))
    bags = Catalogue.of(
        [
            plain,
            replace(plain, item_id="b", author="ann"),
            replace(plain, item_id="c", author="bob"),
            replace(plain, item_id="d", numeric={"year": 1995, "price": 3.5}),
            replace(plain, item_id="e", categories=("tea", "ann")),
        ],
        config,
    ).bags
    features = [set(bag) - {0} for bag in bags.tolist()]
    assert [len(found) for found in features] == [3, 4, 4, 11, 4]
    assert all(features[0] <= found for found in features)
    assert len(features[1] | features[2] | features[4]) == 6


def test_a_full_bag_keeps_author_then_categories_then_numbers():
    item = Item("a", "one two three four five six", ("x", "y"), author="ann", numeric={"year": 1995})
    whole = Catalogue.of([item], CONFIG.model_copy(update={"bag_size": 16})).bags[0]
    (cut,) = Catalogue.of([item], CONFIG).bags
    assert cut.tolist() == whole[:4].tolist()
    assert set(whole[:1]) == set(Catalogue.of([Item("a", author="ann")], CONFIG).bags[0]) - {0}
    assert set(whole[1:3]) == set(Catalogue.of([Item("a", categories=("x", "y"))], CONFIG).bags[0]) - {0}
    assert set(whole[3:7]) == set(Catalogue.of([Item("a", numeric={"year": 1995})], CONFIG).bags[0]) - {0}


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_number_that_is_not_finite_is_an_error_naming_item_and_number(number):
    with pytest.raises(ValueError, match="numeric: of item 'cup', year is"):
        Catalogue.of([Item("cup", numeric={"year": number})], CONFIG)


def test_a_catalogue_that_follows_another_keeps_its_order_and_is_what_all_items_make():
    first = {name: Item(name, f"about {name}", ("x",), (1.0, 0.0)) for name in ("b", "a", "c", "d")}
    known = Catalogue.of(list(first.values()), CONFIG)
    after = {name: item for name, item in first.items() if name != "a"}
    after |= {"c": Item("c", "other words", ("y", "z"), None, 9.0), "f": Item("f"), "e": Item("e", "new")}
    made = Catalogue.following(known, after, {"c"}, CONFIG)
    assert made.item_ids == ["b", "c", "d", "e", "f"], "new ones by id, behind the others"
    assert made.same_as(Catalogue.of([after[name] for name in made.item_ids], CONFIG))
    assert not made.same_as(known)
    assert Catalogue.following(known, first, (), CONFIG).same_as(known)
    assert Catalogue.following(None, first, (), CONFIG).item_ids == ["a", "b", "c", "d"]
    stale = after | {"b": Item("b", "changed, though not said so")}
    assert Catalogue.following(known, stale, {"c"}, CONFIG).titles[0] == "about b", "only what changed is made again"
