"""What every sequence store promises, proved for each backend against the plain reference."""

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pinrec.config import Action, Vocabulary
from pinrec.history import HistoryEvent
from streaming.stores.base import Applied, Batch, Change, OffsetMismatchError, SequenceStore, StoreMismatchError
from streaming.stores.lmdb import LmdbSequenceStore
from tests.reference_store import ReferenceStore

LIMIT, STRIDE = 8, 3
Open = Callable[[], SequenceStore]


@pytest.fixture(params=["reference", "lmdb"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[SequenceStore]:
    if request.param == "reference":
        yield ReferenceStore(LIMIT, STRIDE)
        return
    store = LmdbSequenceStore(tmp_path / "sequences", LIMIT, STRIDE, map_gib=0.1)
    yield store
    store.close()


def event(i: int, timestamp: float | None = None) -> HistoryEvent:
    return HistoryEvent(float(i) if timestamp is None else timestamp, f"e{i:04d}", f"item-{i}", i, i % 3, i % 2, False)


def test_events_and_offset_are_stored_together(store: SequenceStore) -> None:
    assert store.offset(3) is None
    assert store.read(["ann"]) == [None]
    assert store.apply(3, 100, 103, [("ann", event(2)), ("ann", event(1))], 50.0) == Applied(2, 0, 0)
    assert store.offset(3) == 103
    (history,) = store.read(["ann"])
    assert history is not None
    assert history.events() == [event(1), event(2)]
    assert store.count() == 1


def test_several_partitions_are_applied_together_or_not_at_all(store: SequenceStore) -> None:
    store.apply(1, 0, 4, [("ann", event(1))], 1.0)
    fits = Batch(0, 7, 9, [("ann", event(2)), ("bob", event(3))], 5.0)
    with pytest.raises(OffsetMismatchError) as caught:
        store.apply_all([fits, Batch(1, 3, 6, [("cid", event(4))], 5.0)])
    assert caught.value.partition == 1
    assert store.offset(0) is None
    assert store.offset(1) == 4
    assert store.read(["bob", "cid"]) == [None, None]

    assert store.apply_all([fits, Batch(1, 4, 6, [("ann", event(2)), ("ann", event(4))], 5.0)]) == [
        Applied(2, 0, 0),
        Applied(1, 1, 0),
    ]
    assert [store.offset(partition) for partition in (0, 1)] == [9, 6]
    (history,) = store.read(["ann"])
    assert history is not None
    assert history.events() == [event(1), event(2), event(4)]


def test_a_batch_that_does_not_start_at_the_offset_changes_nothing(store: SequenceStore) -> None:
    store.apply(0, 0, 2, [("ann", event(1))], 1.0)
    for first in (0, 1, 3):
        with pytest.raises(OffsetMismatchError) as caught:
            store.apply(0, first, 9, [("ann", event(2)), ("bob", event(3))], 99.0)
        assert (caught.value.stored, caught.value.first) == (2, first)
    assert store.offset(0) == 2
    assert store.read(["bob"]) == [None]
    assert store.as_of() == 1.0


def test_offsets_without_events_can_be_passed_over(store: SequenceStore) -> None:
    store.apply(0, 0, 5, [], 1.0)
    store.apply(0, 5, 5, [], 2.0)
    assert store.offset(0) == 5
    assert store.as_of() == 2.0


def test_duplicates_are_counted_once(store: SequenceStore) -> None:
    assert store.apply(0, 0, 3, [("ann", event(1)), ("ann", event(1)), ("bob", event(1))], 1.0) == Applied(2, 1, 0)
    assert store.apply(0, 3, 4, [("ann", event(1))], 1.0) == Applied(0, 1, 0)
    (history,) = store.read(["ann"])
    assert history is not None
    assert (history.total, len(history)) == (1, 1)


def test_a_deletion_forgets_what_came_before_it_and_nothing_after(store: SequenceStore) -> None:
    store.apply(0, 0, 1, [("ann", event(1)), ("bob", event(1))], 1.0)
    changes: list[Change] = [("ann", event(2)), ("ann", None), ("ann", event(3)), ("cid", None)]
    assert store.apply(0, 1, 5, changes, 1.0) == Applied(2, 0, 1)
    ann, bob, cid = store.read(["ann", "bob", "cid"])
    assert ann is not None
    assert bob is not None
    assert ann.events() == [event(3)]
    assert ann.total == 1
    assert cid is None
    store.apply(0, 5, 6, [("ann", None)], 1.0)
    assert store.read(["ann"]) == [None]
    assert store.count() == 1


def test_deletions_are_told_once_and_in_order(store: SequenceStore) -> None:
    assert store.deletions(0) == (0, [])
    changes: list[Change] = [("ann", event(1)), ("bob", event(1)), ("ann", None), ("cid", None), ("bob", None)]
    store.apply(0, 0, 5, changes, 1.0)
    assert store.deletions(0) == (2, ["ann", "bob"])
    assert store.deletions(1) == (2, ["bob"])
    assert store.deletions(2) == (2, [])
    store.apply(0, 5, 7, [("ann", event(2)), ("ann", None)], 1.0)
    assert store.deletions(2) == (3, ["ann"])


def test_too_many_deletions_to_remember_are_told_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streaming.stores.lmdb._DELETIONS", 3)
    store = LmdbSequenceStore(tmp_path / "sequences", LIMIT, STRIDE, map_gib=0.1)
    for i in range(5):
        store.apply(0, 2 * i, 2 * i + 2, [(f"user-{i}", event(1)), (f"user-{i}", None)], 1.0)
    assert store.deletions(1) == (5, None)
    assert store.deletions(2) == (5, ["user-2", "user-3", "user-4"])
    store.close()


def test_as_of_is_the_least_of_all_partitions_and_never_falls_back(store: SequenceStore) -> None:
    assert store.as_of() is None
    store.apply(0, 0, 1, [], 10.0)
    store.touch({1: 7.0})
    assert store.as_of() == 7.0
    store.touch({0: 12.0, 1: 11.0})
    assert store.as_of() == 11.0
    store.apply(1, 40, 41, [], 3.0)
    assert store.as_of() == 11.0
    assert store.offset(1) == 41


def test_a_store_serves_one_log(store: SequenceStore) -> None:
    store.bind("cluster-a/events", Vocabulary())
    store.bind("cluster-a/events", Vocabulary())
    with pytest.raises(StoreMismatchError):
        store.bind("cluster-b/events", Vocabulary())


def test_names_keep_their_indices(store: SequenceStore) -> None:
    click, save = Action(name="click"), Action(name="save")
    store.bind("log", Vocabulary(actions=(click, save), surfaces=("home",)))
    store.bind("log", Vocabulary(actions=(click, save, Action(name="buy")), surfaces=("home", "search")))
    with pytest.raises(StoreMismatchError, match=r"vocabulary\.actions: .*click, save, buy in this order"):
        store.bind("log", Vocabulary(actions=(save, click, Action(name="buy")), surfaces=("home", "search")))
    with pytest.raises(StoreMismatchError, match=r"vocabulary\.surfaces"):
        store.bind("log", Vocabulary(actions=(click, save, Action(name="buy")), surfaces=("search",)))


def test_unknown_and_impossible_users_have_no_history(store: SequenceStore) -> None:
    store.apply(0, 0, 1, [("ann", event(1))], 1.0)
    found = store.read(["nobody", "ann", "", "x" * 10_000])
    assert [history is not None for history in found] == [False, True, False, False]


@pytest.mark.parametrize("seed", range(5))
def test_random_logs_cut_at_random_places_agree_with_the_reference(store: SequenceStore, seed: int) -> None:
    """Ties, duplicates, late events inside the window, deletions, and windows that move."""
    rng = random.Random(seed)
    users = [f"user-{i}" for i in range(12)]
    log: list[Change] = []
    for i in range(1_500):
        user = rng.choice(users)
        log.append((user, event(i, float(i - rng.choice([0, 0, 0, i % 2])))))
        if rng.random() < 0.1:
            log.append(next(change for change in reversed(log) if change[0] == user))
        if rng.random() < 0.005:
            log.append((user, None))
    reference = ReferenceStore(LIMIT, STRIDE)
    at = 0
    while at < len(log):
        end = min(len(log), at + rng.randint(0, 90))
        assert store.apply(1, at, end, log[at:end], float(end)) == reference.apply(1, at, end, log[at:end], float(end))
        at = end
    assert [h and h.packed for h in store.read(users)] == [h and h.packed for h in reference.read(users)]
    assert store.count() == reference.count()
