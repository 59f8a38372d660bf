"""A bundle made bad on purpose is refused, each by the check that is meant for it."""

from dataclasses import replace

import faiss
import numpy as np
import pytest
import torch

from pinrec.bundle import BundleError
from pinrec.config import GateSettings, GenerationConfig
from pinrec.dataset import EventColumns
from pinrec.gate import Judgement, judge, sample_histories
from tests.small_bundle import CONFIG, NOW, VOCABULARY, small_bundle, small_history

LIMITS = GateSettings()
FIGURES = {
    "recall@10": 0.2, "candidate_recall@10": 0.2, "prequential_events": 900.0,
    "earlier_recall@10": 0.3, "candidate_earlier_recall@10": 0.3, "earlier_events": 900.0,
}  # fmt: skip


@pytest.fixture(scope="module")
def bundle():
    return small_bundle()


@pytest.fixture(scope="module")
def histories():
    return [small_history(4 + seed % 9, seed) for seed in range(40)]


def with_figures(bundle, **changed):
    metrics = {name: value for name, value in (FIGURES | changed).items() if value is not None}
    return replace(bundle, manifest=bundle.manifest.model_copy(update={"metrics": metrics}))


SERVING = small_bundle()


def judged(bundle, histories, serving=SERVING, limits=LIMITS):
    return judge(bundle, serving, histories, limits, GenerationConfig())


def refused(bundle, histories, limits=LIMITS):
    judgement = judged(bundle, histories, limits=limits)
    return {refusal.check: refusal for refusal in judgement.refusals}


def test_a_good_candidate_passes_every_check(bundle, histories):
    judgement = judged(with_figures(bundle), histories)
    assert (judgement.refusals, judgement.passed_over) == ((), ())


@pytest.mark.parametrize("check", ["recall", "earlier_recall"])
def test_a_candidate_that_predicts_worse_than_the_serving_version_is_refused(bundle, histories, check):
    name = f"candidate_{check}@10"
    serving = FIGURES[f"{check}@10"]
    assert not refused(with_figures(bundle, **{name: serving * 0.91}), histories), "within the margin"
    worse = refused(with_figures(bundle, **{name: serving * 0.89}), histories)
    assert list(worse) == [check]
    assert (worse[check].figure, worse[check].bound) == pytest.approx((serving * 0.89, serving * 0.9))


@pytest.mark.parametrize("check", ["recall", "earlier_recall"])
def test_a_few_hits_less_are_no_loss_where_the_gate_must_be_sure(bundle, histories, check):
    """Of nine hundred targets one version has three and the other one: either may be the better one."""
    sure = LIMITS.model_copy(update={"recall_confidence": 0.9})
    few = {f"{check}@10": 3 / 900, f"candidate_{check}@10": 1 / 900}
    assert not refused(with_figures(bundle, **few), histories, sure)
    assert list(refused(with_figures(bundle, **few), histories)) == [check]
    many = {f"{check}@10": 30 / 900, f"candidate_{check}@10": 10 / 900}
    assert list(refused(with_figures(bundle, **many), histories, sure)) == [check]


@pytest.mark.parametrize(
    ("check", "missing"),
    [
        ("recall", {"prequential_events": 499.0}),
        ("recall", {"recall@10": None}),
        ("earlier_recall", {"candidate_earlier_recall@10": None}),
    ],
)
def test_without_enough_events_recall_is_passed_over_and_said_so(bundle, histories, check, missing):
    worst = with_figures(bundle, **({f"candidate_{check}@10": 0.0} | missing))
    judgement = judged(worst, histories)
    assert judgement.refusals == ()
    (said,) = judgement.passed_over
    assert said.startswith(f"{check}: ")
    assert "500 are needed" in said


def test_an_index_that_misses_items_is_refused(bundle, histories):
    entry = bundle.manifest.index.model_copy(update={"recall": 0.97})
    poor = replace(bundle, manifest=bundle.manifest.model_copy(update={"index": entry}))
    (refusal,) = refused(poor, histories).values()
    assert (refusal.check, refusal.figure, refusal.bound) == ("index", 0.97, 0.98)


def test_users_whose_embeddings_have_collapsed_are_refused(histories):
    """Nothing of the history reaches the head, so everybody gets the same list."""
    collapsed = small_bundle()
    with torch.no_grad():
        collapsed.model.backbone.norm.weight.zero_()
    found = refused(collapsed, histories)
    assert set(found) == {"diversity", "item_share"}
    assert (found["item_share"].figure, found["item_share"].bound) == (1.0, 0.95)
    assert found["diversity"].figure == pytest.approx(10 / 120, abs=0.05)
    assert judged(with_figures(collapsed), histories, collapsed).refusals == (), "the one that serves is no better"
    judgement = judged(with_figures(collapsed), histories, None)
    assert judgement == Judgement((), ("diversity: nothing serves yet to compare with",))


def test_items_whose_embeddings_have_collapsed_are_refused(bundle, histories):
    table = np.repeat(bundle.table[:1], len(bundle.table), axis=0)
    flat = faiss.IndexFlatIP(table.shape[1])
    flat.add(table)
    collapsed = replace(bundle, table=table, index=type(bundle.index)(flat))
    assert set(refused(collapsed, histories)) == {"diversity", "item_share"}


def test_of_few_users_nothing_is_said(bundle, histories):
    judgement = judged(with_figures(bundle), histories[:19])
    assert judgement.passed_over == ("diversity: 19 users are too few to tell",)


def test_an_empty_index_never_gets_as_far_as_the_gate(bundle, tmp_path):
    empty = type(bundle.index)(faiss.IndexFlatIP(CONFIG.width))
    with pytest.raises(BundleError, match="rows: the manifest counts 120 items"):
        replace(bundle, index=empty).write(tmp_path / "v000001", "v000001")
    assert not list(tmp_path.iterdir())


def test_a_permuted_item_table_never_gets_as_far_as_the_gate(bundle, tmp_path):
    with pytest.raises(BundleError, match=r"table: table\.npy differs"):
        replace(bundle, table=bundle.table[::-1].copy()).write(tmp_path / "v000001", "v000001")


def test_weights_with_nan_never_get_as_far_as_the_gate(tmp_path):
    broken = small_bundle()
    with torch.no_grad():
        broken.model.output.out.bias.fill_(float("nan"))
    with pytest.raises(BundleError, match="nan: "):
        broken.write(tmp_path / "v000001", "v000001")


def test_the_sample_is_of_the_most_recently_active_users_and_always_the_same():
    users = [f"user-{i % 7}" for i in range(70)] + ["user-3", "user-1"]
    n = len(users)
    events = EventColumns.of_columns(
        {
            "user_id": users,
            "item_id": [f"item-{i % 11}" for i in range(n)],
            "action": ["search" if i % 5 == 4 else "click" for i in range(n)],
            "surface": ["home"] * n,
            "timestamp": [NOW + i for i in range(n)],
            "item_type": ["query" if i % 5 == 4 else "item" for i in range(n)],
            "query": [f"about {i}" if i % 5 == 4 else None for i in range(n)],
        },
        VOCABULARY,
    )
    sample = sample_histories(events, 2, 6)
    assert [history.rows["timestamp"][-1] - NOW for history in sample] == [71, 70]
    assert [len(history) for history in sample] == [6, 6]
    assert all((np.diff(history.rows["timestamp"]) > 0).all() for history in sample)
    asked = sample[1].rows["is_query"] == 1
    texts = [text for text, query in zip(sample[1].item_ids, asked, strict=True) if query]
    assert texts == [f"about {i}" for i in (*range(31, 70, 7), 70) if i % 5 == 4][-len(texts) :]
    again = sample_histories(events, 2, 6)
    assert [history.packed for history in again] == [history.packed for history in sample]
