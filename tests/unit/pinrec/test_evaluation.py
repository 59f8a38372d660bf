import math

import numpy as np
import pytest
import torch

from pinrec.config import GenerationConfig, ModelConfig, Vocabulary
from pinrec.contender import packed_rows
from pinrec.evaluation import outcome_shares, prequential
from pinrec.generation import embed
from pinrec.history import History
from pinrec.items import Catalogue, Item
from pinrec.model import PinRecModel
from pinrec.protocols import UserLog
from pinrec.requests import GenerationRequest
from tests.small_bundle import CONFIG as SMALL
from tests.small_bundle import small_bundle
from tests.unit.pinrec.events import log

VOCABULARY = Vocabulary()
CONFIG = ModelConfig(width=16, layers=1, heads=2, hash_buckets=64, bag_buckets=64, id_width=8, history=4, stride=2)
CATALOGUE = Catalogue.of([Item(f"i{n}") for n in range(12)], CONFIG)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return PinRecModel(CONFIG, VOCABULARY).eval()


def evaluate(model, events, since_row, **options):
    return prequential(model, model.item_table(CATALOGUE), CATALOGUE, events, since_row, **options)


def test_counts_what_was_promised(model):
    rows = [("u", "i0", "click", 1), ("v", "i1", "click", 2), ("u", "i2", "impression", 3)]
    # From here on new: u engages with i3 twice, i0 again, i4 (u: 2 targets); v only sees; w is cold.
    rows += [("u", "i3", "click", 4), ("u", "i3", "save", 4), ("u", "i0", "click", 5), ("u", "i4", "save", 6)]
    rows += [("v", "i5", "impression", 7), ("w", "i6", "click", 8)]
    found = evaluate(model, log(*rows), 3)
    assert (found["users"], found["targets"], found["cold_users"]) == (1, 2, 1)
    assert evaluate(model, log(*rows), 3, only="click")["targets"] == 1


def test_of_items_that_only_one_version_has_none_counts(model):
    events = log(("u", "i0", "click", 1), ("v", "i0", "click", 1), ("u", "i1", "click", 2), ("v", "i3", "click", 4))
    assert evaluate(model, events, 2)["targets"] == 2
    found = evaluate(model, events, 2, among=CATALOGUE.hashes[[0, 1, 2]])
    assert (found["users"], found["targets"]) == (1, 1)


def test_ten_of_ten_unseen_items_are_all_targets_so_recall_is_one(model):
    rows = [("u", "i0", "click", 1), ("u", "i1", "click", 2)] + [("u", f"i{n}", "click", 3 + n) for n in range(2, 12)]
    found = evaluate(model, log(*rows), 2)
    assert found["recall@10"] == 1.0, "seen items take no place, and every place is used"
    assert found["recall@10_popularity"] == 0.0, "the only popular items are in the history"
    half = evaluate(model, log(*rows), 2, k=5)
    assert half["recall@5"] == pytest.approx(0.5)
    assert half["diversity"] == 1.0


def test_events_after_the_request_do_not_change_what_is_generated(model):
    past = [("u", "i0", "click", 1), ("u", "i1", "save", 2)]
    lists = []

    def recorder(queries, k):
        lists.append(queries)
        scores = torch.from_numpy(queries @ model.item_table(CATALOGUE).T).topk(k)
        return scores.values.numpy(), scores.indices.numpy()

    for later in ([("u", "i5", "click", 3)], [("u", "i7", "save", 9), ("u", "i8", "click", 10)]):
        evaluate(model, log(*past, *later), 2, search=recorder, outcomes={"click": 1.0})
    np.testing.assert_allclose(lists[0], lists[1], atol=1e-6)


@pytest.mark.parametrize("offsets_s", [(0.0, 60.0), (3_600.0, 5.0)], ids=["nearest first", "nearest last"])
@pytest.mark.parametrize("in_turn", [False, True])
def test_a_candidate_is_judged_by_the_embeddings_that_serving_makes(in_turn, offsets_s):
    config = SMALL.model_copy(update={"offsets_s": offsets_s})
    bundle, searched = small_bundle(config=config), []
    past = [("u", "item-3", "click", 1), ("u", "item-8", "save", 40), ("u", "item-9", "click", 90)]
    events = log(*past, ("u", "item-5", "click", 95))

    def recorder(queries, k):
        searched.append(queries)
        return bundle.index.search(queries, k)

    outcomes = {"save": 0.2, "click": 0.5, "share": 0.3}
    how = {"mode": "multi_token", "steps": 4, "in_turn": in_turn}
    prequential(bundle.model, bundle.table[:], bundle.catalogue, events, 3, outcomes=outcomes, search=recorder, **how)
    rows = packed_rows(UserLog.of(events.before(3), bundle.catalogue, VOCABULARY))
    asked = GenerationRequest(History.of_rows(rows, None), k=10, now=90.0, outcomes=outcomes)
    served_ED = embed(bundle, [asked], GenerationConfig(**how)).e_BED[0]
    cosine_QE = searched[0] @ served_ED.T
    assert cosine_QE.max(1) == pytest.approx(1, abs=1e-5), "nothing is searched for that serving would not"
    assert cosine_QE.max(0).min() > 0.95, "nothing is left out but what is nearly the same"


def test_shares_are_those_of_the_log_and_nobody_to_test_gives_nan(model):
    events = log(("u", "i0", "click", 1), ("u", "i1", "save", 2), ("u", "i2", "save", 3), ("u", "i3", "impression", 4))
    assert outcome_shares(events, VOCABULARY) == {"click": pytest.approx(1 / 3), "save": pytest.approx(2 / 3)}
    found = evaluate(model, events, 3)
    assert math.isnan(found["recall@10"])
    assert found["users"] == 0
