import numpy as np
import pytest
import torch
from torch.nn import functional as F

from pinrec.baselines.semantic_ids import SemanticIdConfig
from pinrec.baselines.tiger import Tiger, TigerConfig
from pinrec.measures import measure
from pinrec.protocols import disjoint, leave_one_out
from tests.unit.pinrec.small_split import random_user_log, user_log

ITEMS = 12
SMALL = TigerConfig(
    ids=SemanticIdConfig(codes=3, width=8),
    width=16,
    layers=2,
    heads=2,
    head_width=8,
    hidden=32,
    dropout=0.1,
    history=6,
    beam=4,
    epochs=3,
    batch_items=40,
    learning_rate=1e-2,
)


def small(**changes):
    return SMALL.model_copy(update=changes)


def round_and_round(users=72):
    """Every user goes on to the next of twelve items in a ring; all lengths come with all starts."""
    rows = [
        (f"u{u:02}", (u + step) % ITEMS, "click", float(step)) for u in range(users) for step in range(4 + u // ITEMS)
    ]
    return user_log(*rows, items=ITEMS)


@pytest.fixture(scope="module")
def fitted():
    tiger = Tiger(leave_one_out(random_user_log(users=30)), small(), seed=1)
    tiger.fit_epoch()
    return tiger


def score_of_each(tiger, history):
    """Log P of every item after the history, float32[N], by running the decoder on history + item."""
    tiger.model.eval()
    code_NV = torch.from_numpy(tiger.ids.code_NV)
    rows = torch.cat((torch.from_numpy(history).expand(len(code_NV), -1), torch.arange(len(code_NV))[:, None]), 1)
    with torch.inference_mode():
        h_NTD = tiger.model(tiger.model.tokens(code_NV[rows]))[0]
        score_N = torch.zeros(len(code_NV))
        for level, head in enumerate(tiger.model.heads):
            log_p_NS = F.log_softmax(head(h_NTD[:, code_NV.shape[1] * len(history) + level]), 1)
            score_N += log_p_NS[torch.arange(len(code_NV)), code_NV[:, level]]
    return score_N.numpy()


def test_it_learns_what_comes_next():
    split = leave_one_out(round_and_round())
    tiger = Tiger(split, small(epochs=20, dropout=0.0), seed=0)
    losses = [tiger.fit_epoch() for _ in range(20)]
    assert losses[-1] < losses[0] / 2
    assert measure(tiger, split.test, k=1).mean()["hr@1"] > 0.9


def test_a_beam_as_wide_as_the_catalogue_equals_scoring_every_item(fitted):
    histories = [np.array([3, 1, 4, 1, 5]), np.array([9]), np.zeros(0, np.int64)]
    seen = [np.array([1, 3, 4, 5]), np.array([9]), np.zeros(0, np.int64)]
    padded = torch.tensor([[3, 1, 4, 1, 5], [9, 0, 0, 0, 0], [0, 0, 0, 0, 0]])
    found, scores = fitted.beams.search(padded, torch.tensor([5, 1, 0]), seen, ITEMS)
    for history, known, rows, values in zip(histories, seen, found.numpy(), scores.numpy(), strict=True):
        expected = score_of_each(fitted, history)
        expected[known] = -np.inf
        order = np.argsort(-expected)[: ITEMS - len(known)]
        np.testing.assert_array_equal(rows[: len(order)], order)
        np.testing.assert_allclose(values[: len(order)], expected[order], atol=1e-4)
        assert (rows[len(order) :] == -1).all()


@pytest.mark.parametrize("k", [1, 5, 9, 20])
def test_lists_hold_distinct_unseen_items_and_as_many_as_there_are(fitted, k):
    cases = leave_one_out(fitted.log).test
    for rows, seen in zip(fitted.ranked(cases, k), cases.seen, strict=True):
        real = rows[rows >= 0]
        assert len(rows) == k
        assert len(real) == min(k, ITEMS - len(seen))
        assert (rows[len(real) :] == -1).all()
        assert len(set(real.tolist())) == len(real)
        assert not np.isin(real, seen).any()
        assert (real < ITEMS).all()


def test_generated_is_the_ranked_list_in_parts(fitted):
    cases = leave_one_out(fitted.log).test
    np.testing.assert_array_equal(fitted.generated(cases, 2, 3).reshape(len(cases), 6), fitted.ranked(cases, 6))


def test_a_user_gets_the_same_list_alone_and_among_others(fitted):
    cases = leave_one_out(fitted.log).test
    together = fitted.ranked(cases, 6)
    alone = np.concatenate([fitted.ranked(case, 6) for case in cases.batches(1)])
    np.testing.assert_array_equal(together, alone)


def test_resumed_it_ends_where_an_uncut_one_does():
    split = disjoint(random_user_log(users=30))
    uncut = Tiger(split, small(), seed=5)
    losses = [uncut.fit_epoch() for _ in range(3)]
    cut = Tiger(split, small(), seed=5)
    assert cut.fit_epoch() == losses[0]
    saved = cut.state()
    kept = {name: value.clone() for name, value in saved.items()}
    cut.fit_epoch()
    torch.manual_seed(99)
    resumed = Tiger(split, small(), seed=5)
    resumed.load_state(saved)
    assert resumed.epoch == 1
    assert [resumed.fit_epoch() for _ in range(2)] == losses[1:]
    assert saved.keys() == kept.keys()
    for name, value in kept.items():
        assert torch.equal(saved[name], value), name
    after, expected = resumed.state(), uncut.state()
    assert after.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(after[name], value), name


def test_a_state_brings_its_semantic_ids():
    split = disjoint(random_user_log(users=30))
    one, other = Tiger(split, small(), seed=5), Tiger(split, small(), seed=6)
    one.fit_epoch()
    assert not np.array_equal(one.ids.code_NV, other.ids.code_NV)
    other.load_state(one.state())
    np.testing.assert_array_equal(one.ids.code_NV, other.ids.code_NV)
    np.testing.assert_array_equal(one.ranked(split.test, 5), other.ranked(split.test, 5))


def test_nothing_is_learned_from_what_is_held_out():
    kept = [(f"u{u}", (u * 5 + step * step) % 8, "click", float(step)) for u in range(9) for step in range(4)]
    held_out, others = (
        [(f"u{u}", item + step, "click", 4.0 + step) for u in range(9) for step in range(2)] for item in (8, 10)
    )
    fits = []
    for last in (held_out, others):
        tiger = Tiger(leave_one_out(user_log(*kept, *last, items=ITEMS)), small(), seed=0)
        tiger.fit_epoch()
        fits.append(tiger.state())
    for name, value in fits[0].items():
        assert torch.equal(value, fits[1][name]), name


def test_long_histories_are_trained_on_whole_and_each_item_once():
    rows = [(f"u{u}", (u + step) % ITEMS, "click", float(step)) for u in range(5) for step in range(u * 9 + 3)]
    tiger = Tiger(leave_one_out(user_log(*rows, items=ITEMS)), small(), seed=0)
    met = []
    tiger.model.loss = lambda codes, real, loss=tiger.model.loss: (met.append((codes[real], real)), loss(codes, real))[
        1
    ]
    tiger.fit_epoch()
    tiger.fit_epoch()
    expected = 2 * int(tiger.training.length.sum())
    assert sum(len(codes) for codes, _ in met) == expected
    assert max(real.shape[1] for _, real in met) <= SMALL.history + 1
    assert all(real.numel() <= SMALL.batch_items for _, real in met)
