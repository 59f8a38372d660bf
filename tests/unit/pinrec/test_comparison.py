import numpy as np
import pytest

from pinrec.comparison import Compared, ComparisonConfig, compare, embeddings_a_step
from pinrec.config import GenerationConfig, ModelConfig, TrainingConfig
from pinrec.generation import embed
from pinrec.measures import PerUser
from pinrec.protocols import disjoint
from tests.small_bundle import CONFIG, request, small_bundle
from tests.unit.pinrec.small_split import random_user_log

USERS = 400


def compared(popularity=0.2, sasrec=0.3, served=0.3, users=USERS):
    """Models that find one item each for these shares of the users, PinRec for others than the baselines."""

    def found(share, turned=False):
        hit = (np.arange(users) < share * users).astype(float)
        return PerUser(np.arange(users), np.ones(users, np.int64), {"ndcg@10": hit[::-1] if turned else hit})

    figures = {"Popularity": found(popularity), "SASRec": found(sasrec), "PinRec-MT,OC": found(served, turned=True)}
    return Compared("ndcg@10", 1, {}, figures)


def test_the_best_baseline_is_compared_with():
    assert compared().best_baseline == "SASRec"
    assert compared(popularity=0.4).best_baseline == "Popularity"


@pytest.mark.parametrize(
    ("served", "said"),
    [
        (0.5, "PinRec-MT,OC finds more than SASRec, the best baseline here: +66.7 %, 95 % interval"),
        (0.1, "PinRec-MT,OC finds less than SASRec, the best baseline here: -66.7 %, 95 % interval"),
        (0.31, "PinRec-MT,OC against SASRec, the best baseline here: no difference shown: +3.3 %, 95 % interval"),
    ],
)
def test_the_conclusion_claims_what_the_interval_shows(served, said):
    assert compared(served=served).conclusion.startswith(said)
    assert "rough" not in compared(served=served).conclusion


def test_few_users_are_said_to_be_few():
    assert "With so few users the interval itself is rough." in compared(users=50).conclusion


def test_a_baseline_that_finds_nothing_is_compared_with_in_absolute_terms():
    assert compared(popularity=0.0, sasrec=0.0, served=0.5).words("PinRec-MT,OC").startswith("+0.5000, 95 % interval")


def test_every_model_is_fitted_as_asked_tells_how_far_it_is_and_is_tested_on_the_same_users():
    split = disjoint(random_user_log(users=60, items=12), folds=3)
    config = ComparisonConfig(
        model=ModelConfig(width=8, layers=1, heads=1, id_width=8, hash_buckets=64, bag_buckets=64),
        training=TrainingConfig(batch_users=4, window=8),
        epochs=2, max_users=10,
    )  # fmt: skip
    told = []
    made = compare(split, "disjoint", config, told.append)
    assert made.metric == "recall@10"  # the catalogue has only 12 items
    assert [progress.model for progress in told if progress.tested] == list(made.found)
    for name, fitted in made.fitted.items():
        epochs = [progress.epoch for progress in told if progress.model == name]
        assert epochs == ([0, 0, 0] if name == "Popularity" else [0, 1, 2, 2])
        assert fitted.curve[-1].epoch == epochs[-1]
        assert len(made.found[name].user) == 10
        np.testing.assert_array_equal(made.found[name].user, made.found["Popularity"].user)
        assert set(made.columns) <= set(made.found[name].figures)


@pytest.mark.parametrize(
    ("mode", "steps", "in_turn", "expected"),
    [
        ("unconditioned", 6, False, 1), ("outcome", 2, False, 3), ("multi_token", 2, False, 6),
        ("outcome", 3, True, 1), ("multi_token", 6, True, 2), ("multi_token", 2, True, 4),
    ],
)  # fmt: skip
def test_a_step_makes_as_many_embeddings_as_it_is_said_to(mode, steps, in_turn, expected):
    """Of three outcomes in turn over two steps, each step aims at two places, one of which is empty once."""
    outcomes = {"click": 0.5, "save": 0.3, "share": 0.2}
    generation = GenerationConfig(mode=mode, steps=steps, in_turn=in_turn, default_outcomes=outcomes)
    bundle = small_bundle(config=CONFIG.model_copy(update={"offsets_s": (0.0, 60.0)}))
    assert embeddings_a_step(generation, 2) == expected
    assert embed(bundle, [request()], generation).e_BED.shape[1] == steps * expected
