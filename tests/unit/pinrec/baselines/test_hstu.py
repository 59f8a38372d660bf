import numpy as np
import torch

from pinrec.baselines.hstu import HSTU, HSTUConfig, looked_up
from pinrec.protocols import disjoint
from tests.unit.pinrec.small_split import user_log

SHORT_S, LONG_S = 10.0, 1e6


def test_the_time_between_events_decides_what_comes_next():
    # 0, 1, then 2 after a short pause and 3 after a long one; the items before say nothing.
    rows = []
    for u in range(80):
        pause = SHORT_S if u % 2 else LONG_S
        times = 1.7e9 + np.cumsum([0.0, pause, 5.0, 5.0])
        rows += [(f"u{u:02}", item, "click", t) for item, t in zip((0, 1, 2 if u % 2 else 3, 4), times, strict=True)]
    split = disjoint(user_log(*rows, items=6), folds=4)
    config = HSTUConfig(
        width=16,
        attention_width=16,
        value_width=16,
        max_length=6,
        negatives=8,
        batch_users=8,
        learning_rate=3e-3,
        dropout=0,
        embedding_dropout=0,
    )
    contender = HSTU(split, config, 0)
    for _ in range(45):
        contender.fit_epoch()
    scores = contender.scores(split.test)
    short = split.log.events.timestamp[split.test.lo + 1] - split.log.events.timestamp[split.test.lo] == SHORT_S
    assert np.array_equal((scores[:, 2] > scores[:, 3]).numpy(), short)
    assert 0 < short.sum() < len(short)


def test_a_look_up_and_its_gradient_are_those_of_indexing():
    table = torch.randn(5, dtype=torch.float64, requires_grad=True)
    index, upstream = torch.randint(0, 5, (3, 4)), torch.randn(3, 4, dtype=torch.float64)
    expected = torch.autograd.grad(table[index], table, upstream)[0]
    assert torch.equal(looked_up(table, index), table[index])
    assert torch.allclose(torch.autograd.grad(looked_up(table, index), table, upstream)[0], expected)
