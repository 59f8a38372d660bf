import numpy as np

from pinrec.baselines.sequences import Sequences, by_length, item_counts, real_lengths
from pinrec.protocols import Split, disjoint, leave_one_out
from tests.unit.pinrec.small_split import random_user_log, user_log


def items(log, sequences):
    return [log.item[sequences.row[a:b]].tolist() for a, b in zip(sequences.start, sequences.start[1:], strict=False)]


def test_engaged_items_in_order_and_of_equal_ones_in_a_row_the_first():
    log = user_log(
        ("a", 1, "click", 1), ("a", 1, "save", 1), ("a", 2, "skip", 2), ("a", 1, "save", 3), ("a", 3, "click", 4),
        ("a", 1, "click", 5), ("b", 1, "click", 0), ("b", 5, "click", 1), ("c", 5, "click", 1), ("c", 4, "skip", 1),
    )  # fmt: skip
    everything = Split(log, np.ones(len(log), np.bool_), None, None)
    engaged = Sequences.of_training(everything).engaged(log)
    assert items(log, engaged) == [[1, 3, 1], [1, 5], [5]]
    # The first of an exposure's events stands for it.
    assert log.events.timestamp[engaged.row].tolist() == [1, 4, 5, 0, 1, 1]
    assert item_counts(log, engaged)[:6].tolist() == [0, 3, 0, 1, 0, 2]


def test_training_histories_are_of_training_rows_and_case_histories_of_the_cases_own():
    for split in (leave_one_out(random_user_log()), disjoint(random_user_log(), folds=4)):
        training = Sequences.of_training(split)
        assert np.array_equal(np.sort(training.row), np.flatnonzero(split.train))
        assert np.array_equal(split.log.events.user[training.row], training.owner)
        cases = split.test.at(np.array([2, 0, 1]))
        histories = Sequences.of_cases(cases)
        for i in range(3):
            rows = histories.row[histories.start[i] : histories.start[i + 1]]
            assert rows.tolist() == list(range(cases.lo[i], cases.hi[i]))


def test_nothing_engaged_is_an_empty_history():
    log = user_log(("a", 1, "skip", 1), ("a", 2, "skip", 2), ("b", 3, "skip", 2))
    everything = Split(log, np.ones(3, np.bool_), None, None)
    assert items(log, Sequences.of_training(everything).engaged(log)) == [[], []]


def test_padding_is_behind_the_latest_rows():
    sequences = Sequences(np.array([10, 11, 12, 13, 20]), np.array([0, 4, 4, 5]))
    last = sequences.last(np.array([2, 0, 1]), 3)
    assert last.tolist() == [[20, -1, -1], [11, 12, 13], [-1, -1, -1]]
    assert real_lengths(last).tolist() == [1, 3, 0]
    assert sequences.padded(np.array([0]), np.array([1]), np.array([2])).tolist() == [[11, 12]]


def test_groups_hold_every_history_once_and_no_length_is_twice_another():
    length = np.array([0, 1, 8, 9, 16, 17, 200, 120, 3])
    groups = by_length(length)
    assert sorted(np.concatenate(groups).tolist()) == list(range(len(length)))
    assert all(length[g].max() <= max(8, 2 * length[g].min()) for g in groups)
