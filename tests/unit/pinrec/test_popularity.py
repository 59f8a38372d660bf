import numpy as np

from pinrec.config import ModelConfig, Vocabulary
from pinrec.dataset import EventColumns
from pinrec.items import Catalogue, Item
from pinrec.popularity import Popularity
from tests.unit.pinrec.events import log

VOCABULARY = Vocabulary()
CATALOGUE = Catalogue.of([Item(i, created_at=t) for i, t in (("a", 0), ("b", 5), ("c", 9), ("d", 0))], ModelConfig())
DAY_S = 86_400.0


def test_recent_engagement_counts_more_and_impressions_and_unknown_items_do_not():
    rows = [("u", "a", "click", 0)] * 3 + [("u", "b", "click", 2 * DAY_S)] + [("u", "c", "impression", 2 * DAY_S)] * 9
    rows += [("u", "nowhere", "click", 2 * DAY_S)] * 9
    assert Popularity.of(log(*rows), CATALOGUE, VOCABULARY, half_life_s=DAY_S).top(None, 10).tolist() == [1, 0]
    assert Popularity.of(log(*rows), CATALOGUE, VOCABULARY, half_life_s=9 * DAY_S).top(None, 10).tolist() == [0, 1]


def test_a_surface_has_its_own_ranking_and_the_rest_follows():
    events = EventColumns.of_columns(
        {
            "user_id": "uuuu",
            "item_id": list("aabc"),
            "action": ["click"] * 4,
            "surface": ["home", "home", "search", "home"],
            "timestamp": [1.0] * 4,
        },
        VOCABULARY,
    )
    popularity = Popularity.of(events, CATALOGUE, VOCABULARY)
    assert popularity.top(VOCABULARY.surface_index["search"], 3).tolist() == [1, 0, 2]
    assert popularity.top(VOCABULARY.surface_index["home"], 1).tolist() == [0]


def test_a_cold_start_mixes_in_the_newest_and_repeats_nothing(tmp_path):
    rows = [("u", item, "click", n) for n, item in enumerate("aaaddb")]
    popularity = Popularity.of(log(*rows), CATALOGUE, VOCABULARY)
    answer = popularity.cold_start(None, 4, fresh_every=3)
    assert answer.tolist() == [0, 3, 2, 1], "every third is the newest"
    assert Popularity.of(log(("u", "x", "click", 0)), CATALOGUE, VOCABULARY).cold_start(None, 4).tolist() == [2, 1]
    popularity.save(tmp_path)
    np.testing.assert_array_equal(Popularity.load(tmp_path).cold_start(None, 4, 3), answer)
