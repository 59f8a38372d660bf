"""What the sampled softmax learns from its draws."""

import numpy as np
import pytest
import torch

from tests.unit.pinrec.events import log
from tests.unit.pinrec.test_fine_tuning import ITEMS, VOCABULARY, catalogue, learner, scores

POPULAR = slice(1, 7)
OFTEN = 8.0  # as often as the others


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


def popular_log():
    """What is clicked is independent of what was; some items are clicked more often."""
    rng = np.random.default_rng(2)
    rate = np.ones(ITEMS)
    rate[POPULAR] = OFTEN
    rows = []
    for user in range(300):
        clicked = rng.choice(ITEMS, 4, p=rate / rate.sum(), replace=False)
        rows += [(f"u{user}", f"i{item}", "click", 1e9 + 60 * n) for n, item in enumerate(clicked)]
    return log(*rows, vocabulary=VOCABULARY)


def preference(**options):
    """By how much the popular items' log-odds are the higher ones, in the mean."""
    trained = learner(learning_rate=1e-2, averaging=0.95, **options)
    trained.fit(popular_log(), catalogue(), 60)
    logits = scores(trained) / trained.model.temperature.detach()
    return float(logits[POPULAR].mean() - logits[POPULAR.stop :].mean())


@pytest.mark.parametrize("uniform", [0, 16])
def test_log_q_lets_a_sample_learn_how_popular_items_are(uniform):
    """Targets of the batch are drawn as often as they are right: uncorrected, no item is likelier than another."""
    assert preference(uniform_negatives=uniform) == pytest.approx(np.log(OFTEN), abs=0.5)
    assert preference(uniform_negatives=uniform, log_q=False) < 0.5
