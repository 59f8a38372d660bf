"""What a step of training is told of the events that it predicts, and which of a session's it has to find."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from pinrec.config import Action, TrainingConfig, Vocabulary
from pinrec.dataset import EventColumns
from pinrec.items import Catalogue, Item
from pinrec.training import Learner
from tests.unit.pinrec.test_fine_tuning import CONFIG

VOCABULARY = Vocabulary(
    actions=(Action(name="skip", engaging=False), Action(name="click"), Action(name="save")),
    surfaces=("home", "search"),
)
# No two pairs of events are as far apart: a time offset tells which event is predicted from which.
TIMES = [1e9 + 2.0**n for n in range(10)]
ACTIONS = ["click", "save", "save", "skip", "click", "save", "click", "click", "skip", "save"]
SURFACES = ["home", "search", "home", "home", "search", "search", "search", "home", "search", "home"]
ENGAGED = [n for n, action in enumerate(ACTIONS) if action != "skip"]
NEXT = [(n, min(later for later in ENGAGED if later > n)) for n in range(9)]


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def user(sessions=None):
    """One user's events, on an item each."""
    n = len(TIMES) if sessions is None else len(sessions)
    return EventColumns.of_columns(
        {
            "user_id": ["u"] * n,
            "item_id": [f"i{at}" for at in range(n)],
            "action": ACTIONS[:n],
            "surface": SURFACES[:n] if sessions is None else ["home"] * n,
            "timestamp": TIMES[:n],
            "feed_id": sessions,
        },
        VOCABULARY,
    )


def catalogue(items):
    return Catalogue.of([Item(f"i{n}") for n in range(items)], CONFIG)


def step(learner, events, monkeypatch):
    """One step; its loss, and what the head was asked with and answered: [M, D], then [M] each."""
    asked, head = [], learner.model.head

    def listening(h, *conditions):
        made = head(h, *conditions)
        asked.append((made.detach()[:, 0], *(condition[:, 0].tolist() for condition in conditions)))
        return made

    monkeypatch.setattr(learner.model, "head", listening)
    loss = learner.fit(events, catalogue(len(events)), 1).loss
    return loss, *asked[0]


@pytest.mark.parametrize("mode", ["unconditioned", "outcome", "multi_token"])
def test_a_prediction_is_conditioned_on_what_its_target_did_meet_with(mode, monkeypatch):
    monkeypatch.setattr("pinrec.training.DROP", 0.0)
    learner = Learner(CONFIG, VOCABULARY, TrainingConfig(later_targets=3), mode)
    _, _, outcomes, surfaces, offsets = step(learner, user(), monkeypatch)
    told = list(zip(outcomes, surfaces, strict=True))
    truth = [(VOCABULARY.action_index[a], VOCABULARY.surface_index[s]) for a, s in zip(ACTIONS, SURFACES, strict=True)]
    if mode == "unconditioned":
        assert set(told) == {(-1, -1)}
    if mode == "outcome":
        assert told == [truth[target] for _, target in NEXT]
    if mode != "multi_token":
        assert set(offsets) == {-1.0}
        return
    pair_of = {TIMES[m] - TIMES[n]: (n, m) for m in range(10) for n in range(m)}
    pairs = [pair_of[offset] for offset in offsets]
    assert told == [truth[target] for _, target in pairs]
    assert pairs[: len(NEXT)] == NEXT
    later = [(n, m) for n, m in pairs[len(NEXT) :] if (n, m) not in NEXT]
    assert later
    assert all(m in ENGAGED for _, m in later)


@pytest.mark.parametrize("softmax", ["sampled", "exact"])
@pytest.mark.parametrize("relaxed", [True, False])
def test_the_loss_is_that_of_the_best_of_a_sessions_later_events_with_the_same_action(softmax, relaxed, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)  # no bfloat16
    sessions = list("aaaaaaabbb")
    training = TrainingConfig(softmax=softmax, feed_relaxation=relaxed, uniform_negatives=0, log_q=False)
    learner = Learner(CONFIG, VOCABULARY, training, "unconditioned")
    items = torch.from_numpy(learner.model.item_table(catalogue(10)))
    temperature = learner.model.temperature.detach()
    loss, e, *_ = step(learner, user(sessions), monkeypatch)

    def alike(target):
        kind = sessions[target], ACTIONS[target]
        return [n for n in range(target, 10) if (sessions[n], ACTIONS[n]) == kind] if relaxed else [target]

    # In-batch negatives: what the step's predictions aim at, as often as they do.
    drawn = torch.bincount(torch.tensor([target for _, target in NEXT]), minlength=10)
    losses = []
    for score, (_, target) in zip(e @ items.T / temperature, NEXT, strict=True):
        each = []
        for n in alike(target):
            weight = torch.ones(10)
            if softmax == "sampled":
                weight = drawn.float()
                weight[alike(target)] = 0.0
                weight[n] = 1.0
            each.append(F.cross_entropy(score + weight.log(), torch.tensor(n)))
        losses.append(float(min(each)))
    assert loss == pytest.approx(np.mean(losses), rel=1e-5)
