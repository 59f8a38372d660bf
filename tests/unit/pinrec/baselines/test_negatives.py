import numpy as np
import torch
from torch.nn import functional as F

from pinrec.baselines.negatives import Negatives


def test_the_correction_makes_every_item_weigh_one_on_average():
    counts = np.array([50, 30, 15, 5, 0, 0])
    negatives, rng = Negatives(counts, uniform=4, in_batch=6), np.random.default_rng(0)
    total = np.zeros(6)
    for _ in range(4_000):
        pool, log_weight = negatives.draw(rng, rng.choice(6, 20, p=counts / counts.sum()))
        assert len(np.unique(pool)) == len(pool)
        total[pool] += log_weight.exp().numpy()
    assert np.allclose(total / 4_000, 1.0, atol=0.08)


def test_without_correction_a_weight_is_the_times_drawn():
    pool, log_weight = Negatives(np.ones(2, np.int64), uniform=100, log_q=False).draw(
        np.random.default_rng(0), np.zeros(0, int)
    )
    assert pool.tolist() == [0, 1]
    assert log_weight.exp().sum().round() == 100


def test_with_every_item_in_the_pool_the_loss_is_the_softmax_over_all_of_them():
    torch.manual_seed(0)
    table, e = F.normalize(torch.randn(5, 4), dim=1), F.normalize(torch.randn(3, 4), dim=1)
    target = np.array([1, 4, 1])

    class All(Negatives):
        def draw(self, rng, target_M):
            return np.arange(5), torch.zeros(5)

    loss = All(np.ones(5, np.int64), 1).loss(
        np.random.default_rng(0), e, target, lambda items: table[torch.from_numpy(items)], torch.tensor(0.5)
    )
    assert torch.allclose(loss, F.cross_entropy(e @ table.T / 0.5, torch.from_numpy(target)), atol=1e-6)
