"""Two processes that train together against one with a batch twice as large."""

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from pinrec.config import ModelConfig, TrainingConfig, Vocabulary
from pinrec.dataset import EventColumns
from pinrec.items import Catalogue, Item
from pinrec.training import Learner

VOCABULARY = Vocabulary()
STEPS, ITEMS, RANKS = 8, 40, 2
CASES = [(False, "sampled"), (True, "exact")]


def _config(ranking):
    return ModelConfig(
        width=16, layers=1, heads=2, history=32, stride=8, hash_buckets=64, bag_buckets=32, id_width=8, dropout=0.0,
        ranking=ranking,
    )  # fmt: skip


def _events():
    rng, n = np.random.default_rng(3), 900
    actions = rng.choice(["impression", "click", "click", "save", "search"], n).tolist()
    return EventColumns.of_columns(
        {
            "user_id": [f"u{i}" for i in rng.integers(0, 60, n)],
            "item_id": [f"i{i}" for i in rng.integers(0, ITEMS, n)],
            "action": actions,
            "surface": rng.choice(["home", "search"], n).tolist(),
            "timestamp": np.sort(rng.random(n)) * 1e5,
            "item_type": ["query" if action == "search" else "item" for action in actions],
            "query": ["red cup" if action == "search" else None for action in actions],
        },
        VOCABULARY,
    )


def _fitted(batch_users, ranking, softmax, group=None):
    """The losses of two rounds, the second of which replays, and the state after them."""
    torch.set_num_threads(1)
    config = _config(ranking)
    training = TrainingConfig(
        batch_users=batch_users, window=16, uniform_negatives=16, softmax=softmax, item_mask=0.2 if ranking else 0.0
    )
    learner, losses = Learner(config, VOCABULARY, training, "multi_token"), []
    items, events = Catalogue.of([Item(f"i{i}") for i in range(ITEMS)], config), _events()
    for known, since_row in ((events.before(700), 0), (events, 700)):
        learner.fit(known, items, STEPS, lambda *now: losses.append(now[2]), since_row, group=group)
    return losses, learner.state()


def _rank(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=RANKS)
    torch.save([_fitted(4, *case, dist.group.WORLD) for case in CASES], f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """What each rank made of each case."""
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(_rank, (str(folder),), nprocs=RANKS)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(RANKS)]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_two_processes_learn_what_one_learns_of_the_doubled_batch(together, case):
    ranking, softmax = case
    (first, state), (second, other) = (of_rank[CASES.index(case)] for of_rank in together)
    expected, alone = _fitted(4 * RANKS, ranking, softmax)
    assert len(first) == 2 * STEPS
    assert first == second == pytest.approx(expected, rel=2e-3 if softmax == "exact" else 1e-4)
    for name, value in state.items():
        assert torch.equal(value, other[name]), name
        if softmax == "sampled":  # the exact softmax multiplies in bfloat16
            torch.testing.assert_close(value, alone[name], rtol=1e-2, atol=2e-4, msg=name)
    assert _fitted(4, ranking, softmax)[0] != pytest.approx(expected, rel=1e-2), "half a batch is another thing"
