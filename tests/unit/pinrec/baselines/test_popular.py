import numpy as np

from pinrec.baselines.popular import Popular, PopularConfig
from pinrec.protocols import leave_one_out
from tests.unit.pinrec.small_split import user_log

DAY_S = 86_400.0


def log():
    # 1 three times, long ago; 2 twice, of late; 3 in one exposure only, and shown but not engaged with many times.
    rows = [(u, 1, "click", 0.0) for u in "abc"] + [(u, 2, "save", 4 * DAY_S) for u in "ab"]
    rows += [("c", 3, action, 4 * DAY_S) for action in ("click", "save")]
    rows += [(u, 5, "skip", 4 * DAY_S) for u in "abc"]
    # What leave-one-out withholds.
    return user_log(*rows, *[(u, item, "click", 5 * DAY_S + item) for u in "abc" for item in (7, 8)], items=10)


def ranked(config, k=4):
    split = leave_one_out(log())
    popular = Popular(split, config)
    nothing_seen = [np.zeros(0, np.int64)] * len(split.test)
    cases = split.test
    cases = type(cases)(cases.user, cases.lo, cases.hi, cases.targets, cases.outcomes, nothing_seen, cases.actions)
    return popular.ranked(cases, k), popular.scores(cases)[0, :9].tolist()


def test_engagements_are_counted_once_an_exposure_and_only_those_that_may_be_trained_on():
    lists, scores = ranked(PopularConfig())
    assert scores == [0, 3, 2, 1, 0, 0, 0, 0, 0]
    assert lists.tolist() == [[1, 2, 3, 0]] * 3


def test_recent_events_count_more():
    lists, scores = ranked(PopularConfig(kind="recent", half_life_s=DAY_S))
    assert np.allclose(scores, [0, 3 / 16, 2, 1, 0, 0, 0, 0, 0])
    assert lists[0].tolist() == [2, 3, 1, 0]


def test_what_was_seen_does_not_come_back_and_there_is_nothing_to_fit():
    split = leave_one_out(log())
    popular = Popular(split, PopularConfig())
    assert popular.epochs == popular.epoch == 0
    for row, seen in zip(popular.generated(split.test, 2, 2), split.test.seen, strict=True):
        assert not np.isin(row, seen).any()
    popular.load_state(popular.state())
