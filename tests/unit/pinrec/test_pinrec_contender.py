"""PinRec under comparison: it resumes exactly, retrieves what serving would, and sees only what its recipe tells it."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from pinrec.config import GenerationConfig, ModelConfig, TrainingConfig
from pinrec.contender import PinRec, PinRecRecipe
from pinrec.generation import embed, generate
from pinrec.items import feature_bag
from pinrec.measures import measure
from pinrec.protocols import disjoint, leave_one_out
from tests.unit.pinrec.baselines.rings import ITEMS, ring
from tests.unit.pinrec.small_split import random_user_log

MODEL = ModelConfig(
    width=16, layers=1, heads=2, history=16, stride=1, hash_buckets=256, bag_buckets=64, id_width=16, bag_width=4,
    dropout=0.1, offsets_s=(1.0, 3.0), max_offset_s=10.0,
)  # fmt: skip
TRAINING = TrainingConfig(batch_users=4, window=8, softmax="exact", averaging=0.9, learning_rate=1e-2)
MULTI = GenerationConfig(mode="multi_token", steps=2, default_outcomes={"click": 0.7, "save": 0.3})


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def recipe(epochs=3, generation=MULTI, **options):
    return PinRecRecipe(MODEL, TRAINING, generation, epochs, **options)


@pytest.fixture(scope="module")
def split():
    return disjoint(random_user_log(users=40), folds=4)


def test_it_goes_on_after_an_epoch_as_if_it_had_never_stopped(split):
    uncut, cut, resumed = (PinRec(split, recipe(), seed=3) for _ in range(3))
    for _ in range(3):
        uncut.fit_epoch()
    cut.fit_epoch()
    resumed.load_state(cut.state())
    for _ in range(2):
        resumed.fit_epoch()
    assert resumed.epoch == uncut.epoch == 3
    expected = uncut.state()
    for name, value in resumed.state().items():
        assert torch.equal(value, expected[name]), name
    np.testing.assert_array_equal(resumed.ranked(split.test, 5), uncut.ranked(split.test, 5))


def test_another_seed_is_another_model(split):
    one, other = (PinRec(split, recipe(), seed).state()["model.output.state.weight"] for seed in (0, 1))
    assert not torch.equal(one, other)


def test_its_lists_are_those_of_serving_and_hold_nothing_seen(split):
    model = PinRec(split, recipe(), 0)
    model.fit_epoch()
    lists = model.ranked(split.test, 4)
    served = generate(model.bundle, model.requests(split.test, 4), MULTI)
    for row, candidates, seen in zip(lists, served, split.test.seen, strict=True):
        assert [r for r in row if r >= 0] == [candidate.row for candidate in candidates]
        assert not np.isin(row, seen).any()


def test_each_embedding_retrieves_its_own_best_unseen_items(split):
    model = PinRec(split, recipe(), 0)
    model.fit_epoch()
    found = model.generated(split.test, 8, 3)  # two outcomes, two offsets, two steps
    assert found.shape == (len(split.test), 8, 3)
    for rows, seen in zip(found, split.test.seen, strict=True):
        assert not np.isin(rows, seen).any()
        for row in rows:
            assert len(np.unique(row[row >= 0])) == (row >= 0).sum()


def test_equal_scores_of_an_embedding_go_to_the_lower_row():
    split = disjoint(random_user_log(users=40, items=60), folds=4)
    model = PinRec(split, recipe(), 0)
    for kinds in (1, 4):  # of vectors: all items are the same, or a quarter of them each
        vectors = np.eye(kinds, MODEL.width, dtype=np.float32)  # products are exact, in whatever order they are added
        table = np.ascontiguousarray(vectors[np.arange(60) % kinds])
        model._bundle = replace(model.bundle, table=table)
        e_BED = embed(model.bundle, model.requests(split.test, 7), MULTI).e_BED
        for rows, e_ED, seen in zip(model.generated(split.test, 8, 7), e_BED, split.test.seen, strict=True):
            score_EN = e_ED @ vectors.T
            for row, of_kind in zip(rows.tolist(), score_EN, strict=True):
                unseen = sorted(set(range(60)) - set(seen.tolist()), key=lambda n: (-of_kind[n % kinds], n))
                assert row == unseen[:7]


def test_another_number_of_embeddings_than_its_generation_makes_is_refused(split):
    with pytest.raises(ValueError, match=r"makes 8 embeddings a user, not 5"):
        PinRec(split, recipe(), 0).generated(split.test, 5, 3)


def test_it_learns_what_comes_next():
    split = leave_one_out(ring())
    model = PinRec(split, recipe(60, GenerationConfig(mode="unconditioned", steps=1)), 0)
    for _ in range(60):
        model.fit_epoch()
    assert measure(model, split.test, k=3).mean()["hr@3"] > 0.9 > 3 / ITEMS


def test_what_a_recipe_withholds_is_not_seen_and_rows_stay_the_same(split):
    told = recipe(without=("content", "time")).told(split)
    assert (told.log.catalogue.bags == feature_bag((), MODEL)).all()
    assert told.log.catalogue.item_ids == split.log.catalogue.item_ids
    np.testing.assert_array_equal(told.log.item, split.log.item)
    users = told.log.events.user
    np.testing.assert_array_equal(np.diff(told.log.events.timestamp)[np.diff(users) == 0], 1.0)
    assert recipe(session_gap_s=5.0).told(split).log.events.feed.min() >= 0
