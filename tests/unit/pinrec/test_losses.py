import numpy as np
import pytest
import torch
from torch.nn import functional as F

from pinrec.losses import exact_softmax, sampled_softmax


def loss(e, positives, admissible, pool, weight, hit):
    return sampled_softmax(e, positives, admissible, pool, weight, hit, torch.tensor(0.1))


def unit(*shape):
    return F.normalize(torch.randn(*shape), dim=-1)


def test_with_every_item_drawn_once_it_is_the_full_softmax():
    torch.manual_seed(0)
    e, items, target = unit(6, 8), unit(20, 8), torch.randint(0, 20, (6,))
    hit = target[:, None] == torch.arange(20)
    got = loss(e, items[target][:, None], torch.ones(6, 1, dtype=torch.bool), items, torch.zeros(20), hit)
    torch.testing.assert_close(got, F.cross_entropy(e @ items.T / 0.1, target, reduction="none"))


def test_log_q_makes_a_skewed_sample_estimate_the_full_softmax():
    """The denominator from draws of a skewed distribution has the full one's expectation."""
    torch.manual_seed(1)
    rng = np.random.default_rng(1)
    e, items, target = unit(1, 8), unit(30, 8), 4
    q = 1.0 / np.arange(1, 31)
    q /= q.sum()
    score = (e @ items.T / 0.1)[0]
    denominators = []
    for _ in range(3_000):
        pool, counts = np.unique(rng.choice(30, 40, p=q), return_counts=True)
        weight = torch.tensor(np.log(counts / (40 * q[pool])), dtype=torch.float32)
        pool = torch.from_numpy(pool)
        value = loss(e, items[target][None, None], torch.tensor([[True]]), items[pool], weight, (pool == target)[None])
        denominators.append((value + score[target]).exp().item())
    assert abs(np.mean(denominators) / score.exp().sum().item() - 1) < 0.03


def test_the_loss_over_several_positives_is_the_least_and_none_of_them_is_a_negative():
    torch.manual_seed(2)
    e, items = unit(3, 8), unit(12, 8)
    positives = torch.tensor([[0, 5], [1, 6], [2, 7]])
    admissible = torch.tensor([[True, True], [True, True], [True, False]])
    hit = (torch.where(admissible, positives, -1)[:, :, None] == torch.arange(12)).any(1)
    got = loss(e, items[positives], admissible, items, torch.zeros(12), hit)
    for row in range(3):
        chosen = positives[row][admissible[row]]
        others = torch.tensor([i for i in range(12) if i not in chosen])
        score = e[row] @ items.T / 0.1
        each = [torch.logsumexp(torch.cat((score[i][None], score[others])), 0) - score[i] for i in chosen]
        torch.testing.assert_close(got[row], torch.stack(each).min())


def test_the_exact_softmax_by_blocks_has_the_gradients_of_cross_entropy():
    torch.manual_seed(2)
    e = torch.randn(600, 8, dtype=torch.float64, requires_grad=True)
    items = torch.randn(40, 8, dtype=torch.float64, requires_grad=True)
    scale = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    target = torch.randint(0, 40, (600,))
    ours = exact_softmax(e, items, target, scale, low_precision=False)
    theirs = F.cross_entropy(e @ items.T * scale, target)
    torch.testing.assert_close(ours, theirs)
    for got, expected in zip(
        torch.autograd.grad(3 * ours, (e, items, scale)),
        torch.autograd.grad(3 * theirs, (e, items, scale)),
        strict=True,
    ):
        torch.testing.assert_close(got, expected)


def test_low_precision_changes_the_exact_softmax_by_its_rounding_only():
    torch.manual_seed(3)
    e, items, target = unit(300, 32), unit(100, 32), torch.randint(0, 100, (300,))
    exact, rounded = (exact_softmax(e, items, target, 20.0, low) for low in (False, True))
    assert abs(exact - rounded) < 0.01 * exact


@pytest.mark.parametrize(("processor", "rounds"), [({"avx512_bf16": True}, True), ({"bf16": True}, True), ({}, False)])
def test_low_precision_is_for_processors_that_multiply_it(monkeypatch, processor, rounds):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True} | processor)
    torch.manual_seed(3)
    e, items, target = unit(300, 32), unit(100, 32), torch.randint(0, 100, (300,))
    exact, asked = (exact_softmax(e, items, target, 20.0, low) for low in (False, True))
    assert torch.equal(exact, asked) == (not rounds)


def test_the_gradient_of_the_sampled_softmax_is_that_of_the_plain_formula():
    """Over several blocks of predictions, to whatever has a gradient."""
    torch.manual_seed(4)
    count, pool_size, width = 600, 33, 8
    hit = torch.rand(count, pool_size) < 0.1
    weight, upstream = torch.randn(pool_size), torch.rand(count)
    leaves = [unit(count, width), unit(count, 1, width), unit(pool_size, width), torch.tensor(0.1)]
    gradients = []
    for plain in (False, True):
        e, positive, pool, temperature = (leaf.clone().requires_grad_() for leaf in leaves)
        if plain:
            score = (e @ pool.T / temperature + weight).masked_fill(hit, -torch.inf)
            best = (e * positive[:, 0]).sum(1) / temperature
            each = torch.cat((best[:, None], score), 1).logsumexp(1) - best
        else:
            each = sampled_softmax(e, positive, torch.ones(count, 1, dtype=torch.bool), pool, weight, hit, temperature)
        (each * upstream).sum().backward()
        gradients.append([each.detach(), e.grad, positive.grad, pool.grad, temperature.grad])
    for got, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_an_item_that_came_later_is_no_negative_of_the_exact_softmax():
    torch.manual_seed(4)
    e, items, target = unit(300, 8), unit(20, 8).requires_grad_(), torch.randint(0, 20, (300,))
    created, when = torch.arange(20.0, dtype=torch.float64), torch.randint(0, 25, (300,)).double()
    got = exact_softmax(e, items, target, 10.0, low_precision=False, dates=(created, when))
    absent = (created > when[:, None]) & (target[:, None] != torch.arange(20))
    expected = F.cross_entropy((e @ items.T * 10).masked_fill(absent, -torch.inf), target)
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(*(torch.autograd.grad(loss, items)[0] for loss in (got, expected)))
