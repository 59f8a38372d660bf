"""What holds for every neural baseline."""

import numpy as np
import pytest
import torch

from pinrec.baselines.hstu import HSTU, HSTUConfig
from pinrec.baselines.pinnerformer import PinnerFormer, PinnerFormerConfig
from pinrec.baselines.sasrec import SASRec, SASRecConfig
from pinrec.baselines.two_tower import TwoTower, TwoTowerConfig
from pinrec.measures import measure
from pinrec.protocols import disjoint, leave_one_out
from tests.unit.pinrec.baselines.rings import ITEMS, ring
from tests.unit.pinrec.small_split import random_user_log, user_log

SIZES = {"width": 16, "batch_users": 8, "max_length": 6, "learning_rate": 1e-2, "epochs": 3}
SAMPLED = {"uniform_negatives": 8, "in_batch_negatives": 8}
MADE = {
    "sasrec, bce": (SASRec, SASRecConfig(loss="bce", **SIZES)),
    "sasrec, softmax": (SASRec, SASRecConfig(loss="softmax", attend_padding=True, initial="normal", **SIZES)),
    "hstu": (HSTU, HSTUConfig(negatives=8, heads=2, attention_width=8, value_width=8, **SIZES)),
    "two towers": (TwoTower, TwoTowerConfig(hidden=16, **SAMPLED, **SIZES)),
    "pinnerformer": (
        PinnerFormer,
        PinnerFormerConfig(window_days=1.2e-5, **SAMPLED, **SIZES | {"learning_rate": 3e-3}),
    ),
}
every = pytest.mark.parametrize(("kind", "config"), MADE.values(), ids=MADE)


@every
def test_going_on_from_a_state_ends_where_an_uncut_run_does(kind, config):
    split = leave_one_out(random_user_log())
    uncut = kind(split, config, 3)
    for _ in range(3):
        uncut.fit_epoch()
    cut = kind(split, config, 3)
    cut.fit_epoch()
    state = cut.state()
    kept = {name: value.clone() for name, value in state.items()}
    cut.fit_epoch()  # changes nothing of a state already taken
    assert all(torch.equal(state[name], value) for name, value in kept.items())
    torch.rand(7)  # nor do random numbers drawn elsewhere matter
    resumed = kind(split, config, 3)
    resumed.load_state(state)
    assert resumed.epoch == 1
    for _ in range(2):
        resumed.fit_epoch()
    ends, expected = resumed.state(), uncut.state()
    assert ends.keys() == expected.keys()
    assert all(torch.equal(ends[name], value) for name, value in expected.items())
    other = kind(split, config, 4)
    other.fit_epoch()
    assert any(not torch.equal(state[name], value) for name, value in other.state().items())


@every
def test_a_state_of_another_size_is_refused(kind, config):
    state = kind(leave_one_out(random_user_log(items=12)), config, 0).state()
    with pytest.raises(ValueError, match="other sizes"):
        kind(leave_one_out(random_user_log(items=13)), config, 0).load_state(state)


@every
def test_no_place_sees_what_comes_later_nor_padding(kind, config):
    split = leave_one_out(ring())
    contender = kind(split, config, 0)
    contender.fit_epoch()
    user = np.flatnonzero(split.log.end - split.log.start == 5)[:1]
    rows = split.log.start[user][:, None] + np.arange(5)
    other = np.where(np.arange(5) == 4, rows - 3, rows)  # another item and time at the end
    with torch.no_grad():
        a, b = contender.encode(rows), contender.encode(other)
        padded = contender.encode(np.pad(rows, ((0, 0), (0, 1)), constant_values=-1))
    assert torch.allclose(a[:, :4], b[:, :4], atol=1e-5)
    assert not torch.allclose(a[:, 4], b[:, 4], atol=1e-3)
    assert torch.allclose(a, padded[:, :5], atol=1e-5)


@every
def test_test_users_are_not_learned_from(kind, config):
    log = ring()
    split = disjoint(log, folds=4)
    # The test users' items go round the other way: nobody who learned from them would not be disturbed.
    item = log.item.copy()
    tested = ~split.train
    item[tested] = ITEMS - 1 - item[tested]
    changed = disjoint(
        type(log)(log.events, log.catalogue, log.vocabulary, item, log.start, log.end, log.engaged), folds=4
    )
    one, two = kind(split, config, 0), kind(changed, config, 0)
    assert one.fit_epoch() == two.fit_epoch()
    assert all(torch.equal(two.state()[name], value) for name, value in one.state().items())


@every
def test_who_has_no_history_to_encode_gets_what_is_popular(kind, config):
    rows = [(f"u{u}", (u + i) % 3, "click", float(i)) for u in range(6) for i in range(4)]
    log = user_log(*rows, ("z", 9, "skip", 0), ("z", 2, "click", 1), items=10)
    split = disjoint(log, folds=2, valid_share=0.2)
    contender = kind(split, config, 0)
    mine = np.flatnonzero(np.array(log.events.user_ids)[split.test.user] == "z")
    other = next(fold for fold in (0, 1) if "z" in np.array(log.events.user_ids)[disjoint(log, fold, 2, 0.2).test.user])
    if not len(mine):
        split = disjoint(log, other, 2, 0.2)
        contender = kind(split, config, 0)
        mine = np.flatnonzero(np.array(log.events.user_ids)[split.test.user] == "z")
    scores = contender.scores(split.test.at(mine))
    popular = torch.from_numpy(contender.counts_N.astype(np.float32))
    if kind is not PinnerFormer:  # which encodes what was not engaged with, too
        assert torch.equal(scores[0], popular)
    assert torch.isfinite(scores).all()


@every
def test_lists_hold_nothing_seen_and_are_cut_into_embeddings(kind, config):
    split = leave_one_out(ring())
    contender = kind(split, config, 0)
    ranked, generated = contender.ranked(split.test, 6), contender.generated(split.test, 2, 3)
    assert np.array_equal(generated.reshape(len(ranked), 6), ranked)
    for row, seen in zip(ranked, split.test.seen, strict=True):
        assert not np.isin(row, seen).any()


@pytest.mark.parametrize("name", [name for name in MADE if name != "two towers"])
def test_the_next_item_is_learned(name):
    # A mean of what was seen does not tell where in the ring one is; all others must find it.
    kind, config = MADE[name]
    split = leave_one_out(ring())
    contender = kind(split, config.model_copy(update={"dropout": 0.1}), 0)
    losses = [contender.fit_epoch() for _ in range(25)]
    assert losses[-1] < losses[0] / 2
    assert measure(contender, split.test, k=1).mean()["hr@1"] > 0.9


def test_every_epoch_takes_every_user_in_an_order_of_its_own():
    kind, config = MADE["sasrec, bce"]
    contender = kind(leave_one_out(ring()), config, 0)
    orders, loss = [], contender.loss
    contender.loss = lambda users, rng: (orders[-1].extend(users.tolist()), loss(users, rng))[1]
    for _ in range(2):
        orders.append([])
        contender.fit_epoch()
    assert orders[0] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1]) == contender.trainable().tolist()
