import numpy as np

from pinrec.baselines.two_tower import TwoTower, TwoTowerConfig
from pinrec.config import ModelConfig
from pinrec.items import Catalogue, Item
from pinrec.protocols import UserLog, disjoint
from tests.unit.pinrec.events import log
from tests.unit.pinrec.small_split import VOCABULARY

CONFIG = TwoTowerConfig(
    width=16, hidden=32, batch_users=8, learning_rate=1e-2, uniform_negatives=8, in_batch_negatives=8
)


def two_groups():
    """Half of the users like items 0 to 5, half 6 to 11. Nobody met 12 and 13, which look like either group's."""
    rng = np.random.default_rng(0)
    rows = [
        (f"u{u:02}", f"i{6 * (u % 2) + int(item):02}", "click", float(step))
        for u in range(60)
        for step, item in enumerate(rng.permutation(6))
    ]
    groups = [0] * 6 + [1] * 6 + [0, 1]
    catalogue = Catalogue.of([Item(f"i{n:02}", categories=(f"g{g}",)) for n, g in enumerate(groups)], ModelConfig())
    return UserLog.of(log(*rows, vocabulary=VOCABULARY), catalogue, VOCABULARY), np.array(groups)


def test_users_of_two_groups_are_told_apart_and_features_place_an_item_nobody_met():
    user_log, groups = two_groups()
    split = disjoint(user_log, folds=4)
    contender = TwoTower(split, CONFIG, 0)
    for _ in range(15):
        contender.fit_epoch()
    scores = contender.scores(split.test).numpy()
    mine = groups[user_log.item[split.test.lo]]
    for row, group in zip(scores, mine, strict=True):
        own, foreign = row[:12][groups[:12] == group], row[:12][groups[:12] != group]
        assert own.min() > foreign.max()
        assert row[12 + group] > row[13 - group]
    assert {0, 1} == set(mine.tolist())
