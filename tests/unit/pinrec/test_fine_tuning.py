"""Averaging, schedules, the exact softmax and fine-tuning with refused impressions."""

import numpy as np
import pytest
import torch

from pinrec.config import Action, ModelConfig, TrainingConfig, Vocabulary
from pinrec.dataset import EventColumns
from pinrec.items import Catalogue, Item
from pinrec.training import Learner, Schedule
from pinrec.windows import Windows
from tests.unit.pinrec.events import log

VOCABULARY = Vocabulary(
    actions=(Action(name="skip", engaging=False), Action(name="click")), surfaces=("home", "search")
)
CONFIG = ModelConfig(width=16, layers=1, heads=2, hash_buckets=256, bag_buckets=64, id_width=16, bag_width=4, dropout=0)
SMALL = TrainingConfig(batch_users=4, window=16, uniform_negatives=16)
ITEMS = 30


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def catalogue():
    return Catalogue.of([Item(f"i{n}") for n in range(ITEMS)], CONFIG)


def cycle(users=40, length=16):
    """Everyone clicks the items in a circle."""
    rng = np.random.default_rng(0)
    rows = []
    for user in range(users):
        start = rng.integers(ITEMS)
        rows += [(f"u{user}", f"i{(start + n) % ITEMS}", "click", 1e9 + 60 * n) for n in range(length)]
    return log(*rows, vocabulary=VOCABULARY)


def learner(**options):
    return Learner(CONFIG, VOCABULARY, SMALL.model_copy(update=options), "unconditioned")


def weights(learner):
    return {name: value for name, value in learner.state().items() if name != "sketch.counts"}


def test_the_exact_softmax_learns_the_whole_catalogue():
    trained = learner(softmax="exact", learning_rate=1e-2)
    before = trained.fit(cycle(), catalogue(), 5).loss
    after = trained.fit(cycle(), catalogue(), 120, schedule=Schedule(0, 120)).loss
    assert before > 0.8 * np.log(ITEMS)
    assert after < 0.3 * before


def test_parts_of_a_schedule_make_the_rate_of_the_whole_and_resume_bit_for_bit():
    options = {"averaging": 0.9, "softmax": "exact"}
    uncut, cut = learner(**options), learner(**options)
    for first in (0, 6):
        uncut.fit(cycle(), catalogue(), 6, schedule=Schedule(first, 12))
    cut.fit(cycle(), catalogue(), 6, schedule=Schedule(0, 12))
    resumed = learner(**options)
    resumed.load_state(cut.state())
    resumed.fit(cycle(), catalogue(), 6, schedule=Schedule(6, 12))
    for name, value in weights(uncut).items():
        assert torch.equal(value, weights(resumed)[name]), name
    # The last step of the whole is the slowest; a fit that is whole itself starts again from the top.
    rate = uncut.optimizer.param_groups[0]["lr"]
    assert rate < 0.25 * uncut.training.learning_rate


def test_the_average_of_the_weights_is_served_and_trails_what_is_trained():
    trained = learner(averaging=0.95)
    first = {name: p.detach().clone() for name, p in trained.model.named_parameters()}
    trained.fit(cycle(), catalogue(), 10)
    served = dict(trained.served().named_parameters())
    for name, now in trained.model.named_parameters():
        moved, trailing = (now - first[name]).norm(), (served[name] - first[name]).norm()
        assert trailing <= moved * 1.05 + 1e-6, name
    assert any(not torch.equal(now, served[name]) for name, now in trained.model.named_parameters())


def test_without_an_average_the_model_itself_is_served():
    assert (trained := learner()).served() is trained.model


def test_refused_items_are_the_next_ones_shown_to_the_user_and_never_engaged_with():
    rows = [
        ("u", "a", "click", 1), ("u", "b", "skip", 2), ("u", "c", "skip", 3), ("u", "c", "click", 4),
        ("u", "d", "skip", 5), ("v", "e", "skip", 6),
    ]  # fmt: skip
    windows = Windows(log(*rows, vocabulary=VOCABULARY), VOCABULARY)
    refused = windows.refused(np.arange(6))
    assert [[at for at in row if at >= 0] for row in refused.tolist()] == [[1, 4], [4], [4], [4], [], []]


def disliked(users=60):
    """Half of what is shown is skipped by all: the odd items. What is clicked is random among the even ones."""
    rng = np.random.default_rng(1)
    rows = []
    for user in range(users):
        for n in range(16):
            item = int(rng.integers(ITEMS // 2)) * 2 + n % 2
            rows.append((f"u{user}", f"i{item}", "skip" if n % 2 else "click", 1e9 + 60 * n))
    return log(*rows, vocabulary=VOCABULARY)


def scores(trained):
    """Of all items, for the state of one click on the first."""
    items = catalogue()
    model = trained.served().eval()
    table = torch.from_numpy(model.item_table(items))
    with torch.no_grad():
        time = torch.full((1, 1), 1e9, dtype=torch.float64)
        zero = torch.zeros(1, 1, dtype=torch.int64)
        h = model(model.tokens(table[:1][None], zero + 1, zero, time, torch.full_like(time, torch.nan)))[:, 0]
        e = model.head(h, zero - 1, zero - 1, torch.full((1, 1), -1.0))[0, 0]
    return table @ e


def margin(trained):
    """Mean score of the clicked items over that of the refused ones."""
    found = scores(trained)
    return float(found[::2].mean() - found[1::2].mean())


@pytest.mark.parametrize("surfaces", [(), ("home",)], ids=["all surfaces", "one surface"])
def test_fine_tuning_pushes_down_what_users_refuse(surfaces):
    # In-batch negatives alone never show an odd item to the loss; only refusals do.
    options = {"uniform_negatives": 0, "learning_rate": 1e-2, "fine_tune_surfaces": surfaces}
    plain, tuned = learner(**options), learner(**options, fine_tune_share=1.0, impression_weight=1.0)
    for one in (plain, tuned):
        one.fit(disliked(), catalogue(), 60)
    assert margin(tuned) > margin(plain) + 0.2


def on_two_surfaces() -> EventColumns:
    n = 64
    return EventColumns.of_columns(
        {
            "user_id": [f"u{i // 16}" for i in range(n)],
            "item_id": [f"i{i % ITEMS}" for i in range(n)],
            "action": ["click"] * n,
            "surface": ["home" if i % 4 else "search" for i in range(n)],
            "timestamp": [1e9 + i for i in range(n)],
        },
        VOCABULARY,
    )


def test_fine_tuning_of_a_surface_predicts_targets_of_that_surface_only():
    everything = learner().fit(on_two_surfaces(), catalogue(), 4)
    one = learner(fine_tune_share=1.0, fine_tune_surfaces=("search",)).fit(on_two_surfaces(), catalogue(), 4)
    assert 0.15 < one.predictions / everything.predictions < 0.35


def test_fine_tuning_of_an_undeclared_surface_is_refused_by_name():
    with pytest.raises(ValueError, match=r"fine_tune_surfaces: 'moon' is not a declared surface"):
        learner(fine_tune_surfaces=("moon",)).fit(cycle(), catalogue(), 1)


def test_a_loss_without_any_negatives_is_refused():
    with pytest.raises(ValueError, match=r"uniform_negatives: must be at least 1"):
        TrainingConfig(uniform_negatives=0, in_batch_negatives=False)
