import numpy as np

from pinrec.baselines.pinnerformer import PinnerFormer, PinnerFormerConfig
from pinrec.protocols import disjoint, leave_one_out
from tests.unit.pinrec.small_split import random_user_log, user_log

DAY_S = 86_400.0
CONFIG = PinnerFormerConfig(
    width=16, batch_users=8, max_length=8, learning_rate=3e-3, uniform_negatives=8, in_batch_negatives=8, window_days=1
)


def test_all_that_follows_within_the_window_is_predicted_and_nothing_later():
    # After item 0: items 1, 2, 3 the same day in any order; 4 and 5 ten days later. Item 6 comes before.
    rng = np.random.default_rng(0)
    rows = []
    for u in range(60):
        soon, late = rng.permutation([1, 2, 3]), rng.permutation([4, 5])
        items = [6, 0, *soon, *late]
        hours = [0, 1, 2, 3, 4, 240, 241]
        rows += [(f"u{u:02}", int(i), "click", 1.7e9 + 3_600.0 * h) for i, h in zip(items, hours, strict=True)]
    split = disjoint(user_log(*rows, items=8), folds=4)
    contender = PinnerFormer(split, CONFIG, 0)
    for _ in range(30):
        contender.fit_epoch()
    cases = split.test
    cases = type(cases)(cases.user, cases.lo, cases.lo + 2, cases.targets, cases.outcomes, cases.seen, cases.actions)
    scores = contender.scores(cases).numpy()
    assert (scores[:, [1, 2, 3]].min(1) > scores[:, [4, 5]].max(1)).all()


def test_what_was_done_with_an_item_matters():
    # Saving 0 leads to 1, clicking it to 2, skipping it to 3.
    rows = []
    for u in range(60):
        action = ("save", "click", "skip")[u % 3]
        rows += [(f"u{u:02}", 0, action, 1.7e9), (f"u{u:02}", 1 + u % 3, "click", 1.7e9 + 60)]
    split = disjoint(user_log(*rows, items=6), folds=4)
    contender = PinnerFormer(split, CONFIG, 0)
    for _ in range(40):
        contender.fit_epoch()
    best = contender.ranked(split.test, 1)[:, 0]
    assert best.tolist() == [int(targets[0]) for targets in split.test.targets]
    assert len(set(best.tolist())) == 3


def test_targets_are_later_engaged_items_of_the_same_user_within_the_window():
    log = random_user_log(users=30, events=20)
    split = leave_one_out(log)
    window_s = 5.0
    contender = PinnerFormer(split, CONFIG.model_copy(update={"window_days": window_s / DAY_S, "places": 3}), 0)
    rows = contender.training.last(np.arange(30), 20)
    place, target = contender._targets(rows, np.random.default_rng(0))
    assert np.bincount(place // rows.shape[1]).max() <= 3
    assert len(place) > 20
    met = set()
    for row, item in zip(rows.ravel()[place], target, strict=True):
        ahead = np.arange(row + 1, log.end[log.events.user[row]])
        ahead = ahead[split.train[ahead] & log.engaged[ahead]]
        ahead = ahead[log.events.timestamp[ahead] <= log.events.timestamp[row] + window_s]
        assert item in log.item[ahead]
        assert item != log.item[row]
        met.add(len(np.unique(log.item[ahead])))
    assert max(met) > 1


def test_of_a_long_history_every_part_is_encoded_some_time():
    log = user_log(*[("a", i % 7 if i < 18 else i - 11, "click", float(i)) for i in range(20)], items=9)
    contender = PinnerFormer(leave_one_out(log), CONFIG, 0)
    seen = set()
    encode = contender.encode
    contender.encode = lambda rows: (seen.update(rows.ravel().tolist()), encode(rows))[1]
    for _ in range(40):
        contender.fit_epoch()
    assert seen >= set(range(18))
    assert max(seen) == 17  # the last two are withheld
