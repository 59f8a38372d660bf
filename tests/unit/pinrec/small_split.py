"""A small log under a protocol, and a contender that learns nothing but moves like one that does."""

import numpy as np
import torch

from pinrec.baselines.contender import one_list, top_unseen
from pinrec.config import Action, ModelConfig, Vocabulary
from pinrec.items import Catalogue, Item
from pinrec.protocols import UserLog
from tests.unit.pinrec.events import log

VOCABULARY = Vocabulary(actions=(Action(name="click"), Action(name="save"), Action(name="skip", engaging=False)))


def user_log(*rows, items=12):
    """A `UserLog` of (user, item number, action, timestamp) over the catalogue i00, i01, ..."""
    events = log(*((user, f"i{item:02}", action, time) for user, item, action, time in rows), vocabulary=VOCABULARY)
    return UserLog.of(
        events, Catalogue.of([Item(f"i{n:02}") for n in range(items)], ModelConfig(bag_buckets=64)), VOCABULARY
    )


def random_user_log(seed=0, users=20, items=12, events=9):
    rng = np.random.default_rng(seed)
    actions = [action.name for action in VOCABULARY.actions]
    rows = [
        (f"u{u:02}", int(rng.integers(items)), actions[rng.integers(3)], float(rng.integers(2 * events)))
        for u in range(users)
        for _ in range(rng.integers(3, events + 1))
    ]
    return user_log(*rows, items=items)


class Wanderer:
    """Scores every item by a weight that walks at random: an epoch's step depends on seed, epoch and weights alone."""

    def __init__(self, split, epochs=6, seed=0):
        self.split, self.epochs, self.epoch, self.seed = split, epochs, 0, seed
        self.weight = torch.zeros(len(split.log.catalogue))
        self.momentum = torch.zeros_like(self.weight)

    def fit_epoch(self):
        step = torch.randn(len(self.weight), generator=torch.Generator().manual_seed(1_000 * self.seed + self.epoch))
        self.momentum.mul_(0.5).add_(step)
        self.weight.add_(self.momentum)
        self.epoch += 1
        return float(self.weight.square().mean())

    def state(self):
        return {
            "weight": self.weight.clone(), "momentum": self.momentum.clone(), "epoch": torch.tensor(self.epoch)
        }  # fmt: skip

    def load_state(self, state):
        self.weight, self.momentum = state["weight"].clone(), state["momentum"].clone()
        self.epoch = int(state["epoch"])

    def ranked(self, cases, k):
        return top_unseen(self.weight.expand(len(cases), -1).clone(), cases, k)

    def generated(self, cases, embeddings, k):
        return one_list(self, cases, embeddings, k)
