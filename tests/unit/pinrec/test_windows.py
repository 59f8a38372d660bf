import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pinrec.config import Vocabulary
from pinrec.windows import Windows
from tests.unit.pinrec.events import log

VOCABULARY = Vocabulary()
ACTIONS = ("impression", "click", "save")


def targets(rows, position, later=0, max_offset_s=1e9, relax=False, draws=60):
    """All (item row of the log, ...) that are ever drawn for one position."""
    windows = Windows(log(*rows), VOCABULARY)
    rng = np.random.default_rng(0)
    drawn = windows.targets(rng, np.full(draws, position), later, max_offset_s, relax)
    return windows, drawn


def test_the_next_engaged_item_is_the_target_and_impressions_and_known_items_are_not():
    rows = [("u", "a", "click", 1), ("u", "a", "save", 1), ("u", "b", "impression", 2), ("u", "c", "click", 3)]
    rows += [("v", "d", "click", 4)]
    windows, drawn = targets(rows, 0)
    assert set(windows.order[drawn.target].tolist()) == {3}
    assert not len(targets(rows, 3)[1].target), "the next event is another user's"


def test_an_item_shown_before_is_no_target_after_it_was_shown_but_is_one_before():
    rows = [("u", "x", "click", 0), ("u", "b", "impression", 1), ("u", "b", "click", 2), ("u", "c", "click", 3)]
    assert set(targets(rows, 0)[1].target.tolist()) == {2}
    assert set(targets(rows, 1)[1].target.tolist()) == {3}


def test_each_action_on_the_next_item_is_drawn():
    rows = [("u", "x", "click", 0), ("u", "b", "click", 1), ("u", "b", "save", 1), ("u", "c", "click", 2)]
    assert set(targets(rows, 0)[1].target.tolist()) == {1, 2}


def test_later_targets_reach_as_far_as_the_longest_offset():
    rows = [("u", "x", "click", 0), ("u", "b", "click", 10), ("u", "c", "click", 20), ("u", "d", "click", 500)]
    assert set(targets(rows, 0, later=1, max_offset_s=100)[1].target.tolist()) == {1, 2}
    assert set(targets(rows, 0, later=1, max_offset_s=1000)[1].target.tolist()) == {1, 2, 3}


def test_relaxation_admits_the_same_feed_and_action_only():
    rows = [("u", "x", "click", 0, "f"), ("u", "b", "click", 1, "g"), ("u", "c", "save", 2, "g")]
    rows += [("u", "d", "click", 3, "g"), ("u", "e", "click", 4, "h"), ("v", "k", "click", 5, "g")]
    _, drawn = targets(rows, 0, relax=True, draws=1)
    assert drawn.target.tolist() == [1]
    assert set(drawn.admissible[0].tolist()) - {-1} == {1, 3}
    assert targets(rows, 0, relax=False, draws=1)[1].admissible.tolist() == [[1]]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from("uvw"), st.sampled_from("abcdef"), st.sampled_from(ACTIONS), st.integers(0, 9)),
        min_size=1,
        max_size=40,
    ),
    st.integers(0, 99),
)
def test_targets_agree_with_a_plain_search(rows, seed):
    windows = Windows(log(*rows), VOCABULARY)
    ordered = [rows[i] for i in windows.order]
    assert ordered == sorted(
        ordered,
        key=lambda row: ("".join(sorted({r[0] for r in rows}, key=[r[0] for r in rows].index)).index(row[0]), row[3]),
    )
    drawn = windows.targets(np.random.default_rng(seed), np.arange(len(rows)), 2, 1e9, False)
    with_target = set()
    for asked, target in zip(drawn.asked.tolist(), drawn.target.tolist(), strict=True):
        known = {r[1] for r in ordered[: asked + 1] if r[0] == ordered[asked][0]}
        assert target > asked
        assert ordered[target][0] == ordered[asked][0]
        assert ordered[target][1] not in known
        assert ordered[target][2] != "impression"
        with_target.add(asked)
    for asked, (user, *_) in enumerate(ordered):
        known = {r[1] for r in ordered[: asked + 1] if r[0] == user}
        ahead = any(r[0] == user and r[1] not in known and r[2] != "impression" for r in ordered[asked + 1 :])
        assert ahead == (asked in with_target)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from("uvw"), min_size=1, max_size=60), st.integers(2, 9), st.integers(0, 70))
def test_windows_hold_one_user_and_an_event_that_is_new_enough(users, length, since_row):
    windows = Windows(log(*[(u, f"i{n}", "click", n) for n, u in enumerate(users)]), VOCABULARY)
    lo, hi = windows.epoch(np.random.default_rng(0), length, slice(since_row, None))
    assert len(lo) == sum(-(-sum(u == who for u in users[since_row:]) // length) for who in set(users[since_row:]))
    for a, b in zip(lo, hi, strict=True):
        assert 0 < b - a <= length
        assert len(set(windows.user[a:b].tolist())) == 1
        assert (windows.order[a:b] >= since_row).any()
