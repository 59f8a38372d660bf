import numpy as np
import pyarrow as pa
import pytest

from pinrec.config import Vocabulary
from pinrec.dataset import EventColumns
from pinrec.hashing import hash_id

VOCABULARY = Vocabulary()
COLUMNS = {
    "user_id": ["u", "v", "u"],
    "item_id": ["a", "b", None],
    "action": ["click", "save", "search"],
    "surface": ["home", "related", "search"],
    "timestamp": [1.0, 2.0, 3.0],
    "item_type": ["item", "item", "query"],
    "query": [None, None, "red  cup"],
    "feed_id": ["f", None, None],
}


def of_arrow():
    table = pa.table(COLUMNS)
    return dict(zip(table.column_names, table.columns, strict=True))


def of_codes():
    codes = {
        name: np.unique([v or "" for v in COLUMNS[name]], return_inverse=True)
        for name in COLUMNS
        if name != "timestamp"
    }
    return {name: (codes, values.tolist()) for name, (values, codes) in codes.items()} | {
        "timestamp": COLUMNS["timestamp"]
    }


def of_objects():
    return {name: np.array(values, object if name != "timestamp" else float) for name, values in COLUMNS.items()}


@pytest.mark.parametrize("columns", [lambda: COLUMNS, of_arrow, of_codes, of_objects])
def test_columns_of_every_accepted_form_give_the_same_events(columns):
    events = EventColumns.of_columns(columns(), VOCABULARY)
    assert [events.user_ids[u] for u in events.user] == ["u", "v", "u"]
    assert events.item_hash.tolist() == [hash_id("a"), hash_id("b"), hash_id("red cup")]
    assert events.is_query.tolist() == [False, False, True]
    assert events.queries[events.query[2]] == "red cup"
    assert events.action.tolist() == [VOCABULARY.action_index[a] for a in COLUMNS["action"]]
    assert events.surface.tolist() == [0, 2, 1]
    assert (events.feed >= 0).tolist() == [True, False, False]
    assert events.arrived.tolist() == events.timestamp.tolist() == [1.0, 2.0, 3.0]
    assert events.engaged(VOCABULARY).tolist() == [True, True, False]
    assert len(events.before(2)) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"action": ["click", "poke", "search"]}, "action: 'poke' is not declared; declared are impression"),
        ({"surface": ["home", "attic", "search"]}, "surface: 'attic' is not declared"),
        ({"user_id": ["u", "v"]}, "user_id: 2 values; the timestamp column has 3"),
        ({"user_id": ["u", "", "v"]}, "user_id: row 1 has none"),
        ({"item_id": [None, "b", None]}, "item_id: row 0 has none"),
        ({"query": [None, None, None]}, "query: a query event needs its text"),
    ],
)
def test_a_bad_column_is_an_error_naming_it(change, message):
    with pytest.raises(ValueError, match=message):
        EventColumns.of_columns(COLUMNS | change, VOCABULARY)
    with pytest.raises(ValueError, match="surface: this column is missing"):
        EventColumns.of_columns({k: v for k, v in COLUMNS.items() if k != "surface"}, VOCABULARY)


def test_sessions_are_runs_on_one_surface_without_a_long_pause():
    vocabulary = Vocabulary()
    events = EventColumns.of_columns(
        {
            "user_id": ["u"] * 5 + ["v"],
            "item_id": list("abcdef"),
            "action": ["click"] * 6,
            "surface": ["home", "search", "home", "home", "search", "home"],
            "timestamp": [0.0, 1.0, 50.0, 200.0, 61.0, 201.0],
        },
        vocabulary,
    ).with_sessions(60.0)
    a, b, c, d, e, f = events.feed.tolist()
    assert a == c  # the search between them does not part them
    assert b == e
    assert len({a, b, d, f}) == 4
