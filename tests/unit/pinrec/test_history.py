"""Histories against a plain reference: sort, drop duplicates, cut the window."""

from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pinrec import history as packing
from pinrec.history import History, HistoryEvent, merge, window_start

LIMIT, STRIDE = 12, 4


@st.composite
def event_lists(draw: st.DrawFn, most: int = 60) -> list[HistoryEvent]:
    """Distinct events with many equal timestamps; ids and items hold any printable text."""
    ids = draw(
        st.lists(st.text(st.characters(exclude_categories=("C",)), min_size=1, max_size=6), unique=True, max_size=most)
    )
    return [
        HistoryEvent(
            float(draw(st.integers(0, 20))) / 2,
            event_id,
            f"item {event_id}",
            draw(st.integers(0, 2**64 - 1)),
            draw(st.integers(0, 65_535)),
            draw(st.integers(0, 65_535)),
            draw(st.booleans()),
        )
        for event_id in ids
    ]


def cut(draw: st.DrawFn, events: Sequence[HistoryEvent]) -> list[list[HistoryEvent]]:
    """The same events as batches, none reordered."""
    marks = sorted(draw(st.lists(st.integers(0, len(events)), max_size=8)))
    return [list(events[a:b]) for a, b in pairwise([0, *marks, len(events)]) if a < b]


def by_order(events: Sequence[HistoryEvent]) -> list[HistoryEvent]:
    return sorted(events, key=lambda e: (e.timestamp, e.event_id))


def merged(
    batches: Sequence[Sequence[HistoryEvent]], limit: int = LIMIT, stride: int = STRIDE
) -> tuple[bytes | None, int]:
    packed, taken = None, 0
    for batch in batches:
        packed, more = merge(packed, batch, limit, stride)
        taken += more
    return packed, taken


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_any_order_and_any_split_give_the_same_history(data: st.DataObject) -> None:
    events = data.draw(event_lists())
    shuffled = data.draw(st.permutations(events))
    packed, taken = merged(cut(data.draw, shuffled), limit=len(events) + 1, stride=1)
    if not events:
        assert packed is None
        return
    assert packed is not None
    assert taken == len(events)
    assert History(packed).events() == by_order(events)
    assert packed == History.of(by_order(events)).packed


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_the_window_moves_the_same_way_however_batches_are_cut(data: st.DataObject) -> None:
    events = by_order(data.draw(event_lists()))
    batches = [data.draw(st.permutations(batch)) for batch in cut(data.draw, events)]
    packed, taken = merged(batches)
    start = window_start(len(events), LIMIT, STRIDE)
    assert taken == len(events)
    if packed is not None:
        history = History(packed)
        assert history.events() == events[start:]
        assert (history.total, len(history)) == (len(events), len(events) - start)
        assert history.item_ids == [e.item_id for e in events[start:]]
        assert history.event_ids == [e.event_id for e in events[start:]]
        assert history.last_event_id == events[-1].event_id
        assert history.rows["item_hash"].tolist() == [e.item_hash for e in events[start:]]


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_duplicate_never_counts_even_after_it_left_the_window(data: st.DataObject) -> None:
    events = by_order(data.draw(event_lists()))
    expected = merged([events])[0] if events else None
    packed: bytes | None = None
    taken = 0
    for i, event in enumerate(events):
        again = data.draw(st.lists(st.sampled_from(events[: i + 1]), max_size=3))
        packed, more = merge(packed, data.draw(st.permutations([event, *again])), LIMIT, STRIDE)
        taken += more
    assert packed == expected
    assert taken == len(events)


@settings(max_examples=100, deadline=None)
@given(event_lists(), st.data())
def test_an_event_older_than_a_moved_window_is_dropped(events: list[HistoryEvent], data: st.DataObject) -> None:
    events = [e._replace(timestamp=e.timestamp + 1) for e in by_order(events)]
    packed, _ = merged([events])
    late = HistoryEvent(0.5, "late", "late", 1, 0, 0, False)
    again, taken = merge(packed, [late], LIMIT, STRIDE)
    if len(events) > LIMIT:
        assert (again, taken) == (packed, 0)
    else:
        assert taken == 1
        assert "late" in History(again).event_ids[:1] or window_start(len(events) + 1, LIMIT, STRIDE) > 0


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_appending_gives_the_bytes_of_the_general_path(data: st.DataObject) -> None:
    events = by_order(data.draw(event_lists()))
    with pytest.MonkeyPatch.context() as patch:
        fast, _ = merged(cut(data.draw, events))
        patch.setattr(packing, "_append", lambda *_: None)
        slow, _ = merged(cut(data.draw, events))
    assert fast == slow


def test_the_window_start_stands_still_between_two_moves() -> None:
    starts = [window_start(total, 256, 64) for total in range(1_000)]
    assert starts[256] == 0
    assert starts[257] == 64
    assert all(start % 64 == 0 and total - start <= 256 for total, start in enumerate(starts))
    assert all(total - start > 256 - 64 for total, start in enumerate(starts) if start)


def test_bytes_of_another_format_are_refused() -> None:
    with pytest.raises(ValueError, match="packed history"):
        History(b"x" * 64)
