import numpy as np
import pytest
import torch
from torch.nn import functional as F

from pinrec.baselines.sasrec import Block, SASRec, SASRecConfig
from pinrec.protocols import leave_one_out
from tests.unit.pinrec.baselines.rings import ring
from tests.unit.pinrec.small_split import random_user_log, user_log


@pytest.mark.parametrize("heads", [1, 2])
def test_one_key_for_all_padding_is_attention_to_each_of_it(heads):
    config = SASRecConfig(width=8, heads=heads, residual="input", attend_padding=True)
    torch.manual_seed(0)
    block = Block(config).eval()
    torch.nn.init.normal_(block.key_value.bias)
    x = torch.randn(2, 5, 8)
    empty = 3
    causal = torch.full((8, 8), -torch.inf).triu(1)
    literal = block(F.pad(x, (0, 0, empty - 1, 0)), F.pad(causal, (0, 0, 0, 0))[1:].unsqueeze(0).unsqueeze(0))
    mask = torch.cat((torch.full((5, 1), float(np.log(empty))), torch.full((5, 5), -torch.inf).triu(1)), 1)
    assert torch.allclose(block(x, mask[None, None]), literal[:, empty - 1 :], atol=1e-5)


def test_only_a_short_history_attends_to_padding_and_only_where_that_is_asked_for():
    split = leave_one_out(ring())
    made = [SASRec(split, SASRecConfig(width=8, max_length=6, attend_padding=attend), 0) for attend in (True, False)]
    rows = split.log.start[:1][:, None] + np.arange(4)
    with torch.no_grad():
        attended, masked = (contender.encode(rows) for contender in made)
        assert not torch.allclose(attended, masked, atol=1e-3)
        rows = np.flatnonzero(split.log.end - split.log.start > 6)[:1][:, None] + np.arange(6)
        attended, masked = (contender.encode(rows) for contender in made)
        assert torch.allclose(attended, masked, atol=1e-5)


def test_negatives_are_items_the_user_never_met():
    split = leave_one_out(random_user_log())
    contender = SASRec(split, SASRecConfig(width=8), 0)
    user = np.repeat(np.arange(len(split.log.start)), 50)
    drawn = contender._unmet(user, np.random.default_rng(0))
    for u in np.unique(user):
        of_user = contender.positives.row[contender.positives.owner == u]
        met = np.unique(split.log.item[of_user])
        assert not np.isin(drawn[user == u], met).any()
        assert len(np.unique(drawn[user == u])) > 1


def test_a_user_who_met_everything_still_gets_negatives():
    rows = [("a", i % 3, "click", float(i)) for i in range(9)] + [("b", i, "click", float(i)) for i in range(3)]
    log = user_log(*rows, items=3)
    contender = SASRec(leave_one_out(log), SASRecConfig(width=8), 0)
    assert np.isfinite(contender.fit_epoch())


def test_positions_count_from_the_end_that_is_asked_for():
    split = leave_one_out(ring())
    for positions, shift in (("from_end", 6), ("from_start", 0)):
        contender = SASRec(split, SASRecConfig(width=8, max_length=10, positions=positions), 0)
        torch.nn.init.zeros_(contender.model.position.weight)
        rows = split.log.start[:1][:, None] + np.arange(4)
        with torch.no_grad():
            before = contender.encode(rows)
            contender.model.position.weight[shift : shift + 4] += torch.randn(4, 8)
            assert not torch.allclose(before, contender.encode(rows))
            contender.model.position.weight[shift : shift + 4] = 0.0
            assert torch.equal(before, contender.encode(rows))
