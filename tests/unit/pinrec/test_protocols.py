import numpy as np
import pytest

from pinrec.config import ModelConfig
from pinrec.items import Catalogue, Item
from pinrec.protocols import ProtocolError, UserLog, by_time, disjoint, leave_one_out
from tests.unit.pinrec.events import log
from tests.unit.pinrec.small_split import VOCABULARY, random_user_log, user_log


def history(cases, i, log):
    return log.item[cases.lo[i] : cases.hi[i]].tolist()


def test_users_lie_one_after_the_other_by_time_and_equal_times_keep_their_order():
    found = user_log(
        ("b", 5, "click", 2.0),
        ("a", 1, "click", 3.0),
        ("b", 3, "save", 1.0),
        ("a", 9, "skip", 3.0),
        ("a", 2, "save", 3.0),
    )
    assert [found.item[lo:hi].tolist() for lo, hi in zip(found.start, found.end, strict=True)] == [[3, 5], [1, 9, 2]]
    assert found.engaged.tolist() == [True, True, True, False, True]


def test_queries_and_items_out_of_the_catalogue_have_no_row():
    rows = (("a", "i00", "click", 1.0), ("a", "gone", "click", 2.0))
    found = UserLog.of(log(*rows, vocabulary=VOCABULARY), Catalogue.of([Item("i00")], ModelConfig()), VOCABULARY)
    assert found.item.tolist() == [0, -1]
    assert found.engaged.tolist() == [True, False]


def test_leave_one_out_tests_the_last_event_and_validates_the_one_before():
    found = user_log(*(("a", n, "click", float(n)) for n in range(4)), *(("b", n, "click", 0.0) for n in (7, 8)))
    split = leave_one_out(found)
    assert split.train.tolist() == [True, True, False, False, True, True]
    assert history(split.valid, 0, found) == [0, 1]
    assert history(split.test, 0, found) == [0, 1, 2]
    assert [t.tolist() for t in (*split.valid.targets, *split.test.targets)] == [[2], [3]]
    assert [s.tolist() for s in split.test.seen] == [[0, 1, 2]]
    assert split.training_events.timestamp.tolist() == [0.0, 1.0, 0.0, 0.0]


def test_leave_one_out_takes_the_later_of_equal_times_by_the_order_of_the_log():
    split = leave_one_out(user_log(("a", 4, "click", 1.0), *(("a", n, "click", 2.0) for n in (9, 1, 5))))
    assert split.valid.targets[0].tolist() == [1]
    assert split.test.targets[0].tolist() == [5]


def test_a_target_already_met_or_not_engaged_makes_no_case():
    again = (("a", 1, "click", 1.0), ("a", 2, "click", 2.0), ("a", 1, "click", 3.0))
    skipped = (("b", 1, "click", 1.0), ("b", 2, "skip", 2.0), ("b", 3, "click", 3.0))
    split = leave_one_out(user_log(*again, *skipped))
    assert split.valid.user.tolist() == [0]
    assert split.test.user.tolist() == [1]


def test_half_of_the_events_is_the_history_and_what_is_engaged_and_unseen_in_the_rest_is_to_be_found():
    rows = [(1, "click"), (2, "skip"), (2, "click"), (5, "skip"), (4, "save"), (4, "click"), (3, "save")]
    found = user_log(
        *(("a", item, action, float(t)) for t, (item, action) in enumerate(rows)),
        *((f"u{n}", item, "click", float(item)) for n in range(9) for item in range(4)),
    )
    cases = [d.test for d in (disjoint(found, f) for f in range(5)) if 0 in d.test.user]
    assert len(cases) == 1
    at = int(np.flatnonzero(cases[0].user == 0)[0])
    assert history(cases[0], at, found) == [1, 2, 2]
    assert cases[0].seen[at].tolist() == [1, 2]
    assert cases[0].targets[at].tolist() == [3, 4]
    assert cases[0].actions == ("click", "save", "skip")
    assert cases[0].outcomes[at].tolist() == [[False, True, False], [True, True, False]]


@pytest.mark.parametrize("folds", [2, 5, 10])
def test_no_tested_or_validated_user_is_trained_on_and_the_folds_test_each_user_once(folds):
    found = random_user_log(users=53)
    tested = []
    for fold in range(folds):
        split = disjoint(found, fold, folds)
        trained = set(found.events.user[split.train].tolist())
        assert not trained & set(split.test.user.tolist())
        assert not trained & set(split.valid.user.tolist())
        assert not set(split.test.user.tolist()) & set(split.valid.user.tolist())
        assert len(trained) == 53 - round(0.1 * 53) - len(range(fold, 53, folds))
        tested += split.test.user.tolist()
    assert len(tested) == len(set(tested))
    halves = found.start + (found.end - found.start) // 2
    finds = [
        bool(set(found.item[m:e][found.engaged[m:e]]) - set(found.item[s:m]))
        for s, m, e in zip(found.start, halves, found.end, strict=True)
    ]
    assert sorted(tested) == np.flatnonzero(finds).tolist()


def test_folds_are_the_same_every_time_and_others_by_another_seed():
    found = random_user_log(users=53)
    assert disjoint(found, 1).test.user.tolist() == disjoint(found, 1).test.user.tolist()
    assert disjoint(found, 1).test.user.tolist() != disjoint(found, 1, seed=1).test.user.tolist()


def test_cases_come_in_batches_in_order():
    cases = leave_one_out(random_user_log()).test
    batches = list(cases.batches(7))
    assert [len(b) for b in batches[:-1]] == [7] * (len(batches) - 1)
    np.testing.assert_array_equal(np.concatenate([b.user for b in batches]), cases.user)
    assert sum(b.target_count for b in batches) == cases.target_count


ONE = [(f"u{n}", n, "click", float(n)) for n in range(8)]
TWO = [(f"u{n}", n + t, "click", float(t)) for n in range(8) for t in range(2)]
TIMELESS = [(f"u{n}", n + t, "click", 5.0) for n in range(8) for t in range(4)]
SKIPS = [(f"u{n}", n + t, "skip", float(t)) for n in range(8) for t in range(4)]


@pytest.mark.parametrize(
    ("split", "rows", "sentence"),
    [
        (leave_one_out, ONE, "no user has two events, so there is nothing to predict; bring a longer log"),
        (disjoint, ONE, "no user has two events, so there is nothing to predict; bring a longer log"),
        (leave_one_out, TWO, "leave-one-out: no user has three events; bring a longer log"),
        (leave_one_out, TIMELESS, "timestamp: no user's events differ in time, so they have no order; check that"),
        (disjoint, TIMELESS, "timestamp: no user's events differ in time, so they have no order; check that"),
        (disjoint, SKIPS, "second half of the events; bring a longer log, or declare which actions are engaging"),
        (leave_one_out, SKIPS, "leave-one-out: no user ends with .* declare which actions are engaging"),
        (disjoint, TWO[:4], "disjoint: too few users \\(2\\) for 5 folds; bring a longer log"),
        (disjoint, TWO[:2], "disjoint: too few users \\(1\\) for 5 folds; bring a longer log"),
    ],
)
def test_a_log_that_cannot_be_split_is_told_with_the_remedy(split, rows, sentence):
    with pytest.raises(ProtocolError, match=sentence):
        split(user_log(*rows))


def test_a_fold_that_is_none_is_told():
    with pytest.raises(ValueError, match="fold: must be from 0 to 4, not 5"):
        disjoint(random_user_log(), fold=5)


def test_by_time_nothing_late_is_trained_on_and_histories_go_up_to_the_targets():
    a = [("a", n, "click", float(n)) for n in range(10)]
    b = [("b", 1, "click", 0.5), ("b", 2, "skip", 8.5), ("b", 1, "click", 8.6), ("b", 11, "save", 8.7)]
    newcomer = [("c", 3, "click", 8.8)]
    found = user_log(*a, *b, *newcomer)
    split = by_time(found, 0.5, 0.7)  # of 15 events: before 6.0 and 8.4
    first, second = np.quantile(found.events.timestamp, [0.5, 0.7])
    assert split.train.tolist() == (found.events.timestamp < first).tolist()
    assert 4 <= split.train.sum() <= 8
    for cases, since, until in ((split.valid, first, second), (split.test, second, np.inf)):
        for i, targets in enumerate(cases.targets):
            assert len(history(cases, i, found))
            assert found.events.timestamp[cases.lo[i] : cases.hi[i]].max() < since
            late = [e for e in (*a, *b) if e[0] == "ab"[cases.user[i]] and since <= e[3] < until and e[2] != "skip"]
            assert targets.tolist() == sorted({e[1] for e in late} - set(history(cases, i, found)))
    assert split.test.user.tolist() == [0, 1], "nothing is known of who comes later"
    assert split.test.targets[1].tolist() == [11], "1 was met before, 2 not engaged with"


def test_by_time_refuses_what_it_cannot_split():
    with pytest.raises(ValueError, match="trained"):
        by_time(random_user_log(), 0.8, 0.7)
    with pytest.raises(ProtocolError, match="longer log"):
        by_time(user_log(("a", 1, "click", 1.0), ("a", 1, "click", 2.0)))
