import numpy as np
import pytest

from pinrec.config import ModelConfig
from pinrec.hashing import hash_id
from pinrec.items import Catalogue, Item, query_bag

CONFIG = ModelConfig(bag_size=4, bag_buckets=1_000, content_width=2)


def test_rows_finds_items_by_hash_and_answers_minus_one_for_others():
    catalogue = Catalogue.of([Item("b"), Item("a"), Item("c")], CONFIG)
    assert [catalogue.row(i) for i in ("a", "b", "c", "d")] == [1, 0, 2, -1]
    hashes = np.array([[hash_id("c"), hash_id("x")], [hash_id("b"), hash_id("a")]], np.uint64)
    assert catalogue.rows(hashes).tolist() == [[2, -1], [0, 1]]
    assert Catalogue.of([], CONFIG).rows(hashes).tolist() == [[-1, -1], [-1, -1]]


def test_a_saved_catalogue_loads_as_it_was(tmp_path):
    items = [
        Item("ä\u2028", "a title\nof two lines", ("x", "y"), (0.5, -1.0), 12.5),
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


@pytest.mark.parametrize("embedding", [(1.0,), (1.0, 2.0, 3.0), (1.0, float("nan"))])
def test_an_embedding_of_another_length_or_not_finite_is_an_error_naming_the_item(embedding):
    with pytest.raises(ValueError, match=r"embedding: item 'cup' has .* content_width is 2"):
        Catalogue.of([Item("cup", embedding=embedding)], CONFIG)


def test_an_id_given_twice_is_an_error_naming_it():
    with pytest.raises(ValueError, match="item_id: 'cup' is there twice"):
        Catalogue.of([Item("cup"), Item("x"), Item("cup")], CONFIG)
