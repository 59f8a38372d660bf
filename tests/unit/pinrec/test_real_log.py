"""A real log: KuaiRand-Pure (Gao et al. 2022), which is not in this repository."""

import csv
import gzip
from pathlib import Path

import numpy as np
import pytest
import torch

from pinrec.config import Action, ModelConfig, TrainingConfig, Vocabulary
from pinrec.dataset import EventColumns
from pinrec.evaluation import prequential
from pinrec.items import Catalogue, Item
from pinrec.training import Learner

LOG = Path(__file__).parents[4] / "shared/data/kuairand_pure/interactions.csv.gz"
STEPS = 500


@pytest.mark.real_data
@pytest.mark.timeout(400)
@pytest.mark.skipif(not LOG.exists(), reason=f"{LOG} is absent")
def test_on_later_events_the_trained_model_beats_popularity_clearly():
    """Trained on the first 85 % of the log, tested on what users engaged with in the rest (see `prequential`)."""
    with gzip.open(LOG, "rt") as file:
        header, *rows = csv.reader(file)
    columns = dict(zip(header, map(list, zip(*rows, strict=True)), strict=True))
    actions = tuple(
        Action(name=name, engaging=name not in ("skip", "hate")) for name in dict.fromkeys(columns["action"])
    )
    vocabulary = Vocabulary(actions=actions, surfaces=tuple(dict.fromkeys(columns["surface"])))
    events = EventColumns.of_columns(columns, vocabulary)
    assert (np.diff(events.timestamp) >= 0).all()

    config, since_row = ModelConfig(), int(len(events) * 0.85)
    catalogue = Catalogue.of([Item(i) for i in dict.fromkeys(columns["item_id"])], config)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        learner = Learner(config, vocabulary, TrainingConfig(), "multi_token")
        fitted = learner.fit(events.before(since_row), catalogue, STEPS)
        found = prequential(learner.model, learner.model.item_table(catalogue), catalogue, events, since_row)
    finally:
        torch.set_num_threads(threads)
    print(f"\n{fitted.steps} steps, {fitted.seconds:.0f} s, {fitted.events_per_s:.0f} events/s")
    print({name: round(value, 4) for name, value in found.items()})
    assert found["recall@10"] > 1.15 * found["recall@10_popularity"]
