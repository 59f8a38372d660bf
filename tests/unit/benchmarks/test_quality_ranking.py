import math

import numpy as np
import pytest

from benchmarks.quality import ranking
from benchmarks.quality.ranking import CANDIDATES, ndcg, retrieved_figures, shown_figures, shown_lists
from benchmarks.quality.ranking_record import read_rankings
from benchmarks.quality.ranking_report import ranking_section
from benchmarks.result import BenchmarkError
from pinrec.config import GenerationConfig, ModelConfig, TrainingConfig
from pinrec.contender import PinRec, PinRecRecipe
from pinrec.protocols import disjoint
from tests.unit.pinrec.small_split import random_user_log

TINY = {
    "model": {"width": 16, "layers": 1, "history": 16, "stride": 4, "hash_buckets": 64, "bag_buckets": 64,
              "offsets_s": (0.0, 30.0, 60.0, 180.0)},
    "training": {"batch_users": 4, "window": 8, "uniform_negatives": 8},
    "generation": {"steps": 4, "default_outcomes": {"click": 1.0}},
    "epochs": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def split():
    return disjoint(random_user_log(users=60, items=30, events=16), folds=2)


@pytest.fixture(scope="module")
def fitted(split):
    recipe = PinRecRecipe(
        ModelConfig(**TINY["model"], ranking=True), TrainingConfig(**TINY["training"]), GenerationConfig(steps=1), 1
    )
    contender = PinRec(split, recipe, seed=0)
    contender.fit_epoch()
    return contender, recipe


def test_what_was_shown_after_the_history_is_told_apart_by_what_it_met_with(split):
    log, found = split.log, {}
    cases, rows, liked = shown_lists(split)
    for user, shown, engaged in zip(cases.user, rows, liked, strict=True):
        found[int(user)] = dict(zip(shown.tolist(), engaged.tolist(), strict=True))
    expected = {}
    for user, lo, hi in zip(split.test.user, split.test.lo, split.test.hi, strict=True):
        met = {}
        for row in range(hi, log.end[user]):
            if log.item[row] not in log.item[lo:hi]:
                met[int(log.item[row])] = met.get(int(log.item[row]), False) or bool(log.engaged[row])
        if not all(met.values()):
            expected[int(user)] = met
    assert found == expected
    assert len(found) > 5


def test_ndcg_is_one_for_the_liked_first_and_follows_the_definition():
    liked = np.array([False, True, False, True])
    assert ndcg(np.array([0.1, 0.9, 0.2, 0.8]), liked) == 1
    best = 1 + 1 / math.log2(3)
    assert ndcg(np.array([4, 3, 2, 1]), liked) == pytest.approx((1 / math.log2(3) + 1 / math.log2(5)) / best)
    assert ndcg(np.array([4, 3, 2, 1]), liked, k=2) == pytest.approx(1 / math.log2(3) / best)


def test_shown_items_are_ordered_by_each_score_for_the_same_users(fitted, split):
    contender, recipe = fitted
    figures = shown_figures(contender, recipe, split)
    users = len(shown_lists(split)[0])
    assert {name: len(values) for name, values in figures.items()} == dict.fromkeys(
        ("head", "retrieval", "popularity", "random"), users
    )
    assert all(((values > 0) & (values <= 1)).all() for values in figures.values())
    assert not np.array_equal(figures["head"], figures["retrieval"])


def test_reordering_alone_keeps_what_is_retrieved_and_more_candidates_change_it(fitted, split):
    contender, recipe = fitted
    figures = retrieved_figures(contender, recipe, split)
    assert np.array_equal(figures["recall@10"], figures["recall@10, 1 a place"])
    assert not np.array_equal(figures["ndcg@10"], figures["ndcg@10, 1 a place"])
    assert not np.array_equal(figures["recall@10"], figures["recall@10, 10 a place"])


def test_the_command_leaves_one_json_with_gains_and_cost(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "tiny"
    folder.mkdir()
    rng = np.random.default_rng(0)
    rows = ["user_id,item_id,action,surface,timestamp"]
    rows += [
        f"{user},{item},{('click', 'skip')[rng.integers(2)]},web,{1_000 + time}"
        for user in range(60)
        for time, item in enumerate(rng.permutation(150)[:12])
    ]
    (folder / "interactions.csv").write_text("\n".join(rows) + "\n")
    monkeypatch.setattr(ranking, "ENTRY", ranking.ENTRY.but({"tiny disjoint": TINY}))
    monkeypatch.setattr("benchmarks.quality.run.CHECKPOINTS", tmp_path / "checkpoints")
    monkeypatch.setattr(ranking, "_REPEAT_S", 0.0)
    monkeypatch.setattr(ranking, "REPEATS", 2)
    assert ranking.main(["--data", str(folder), "--fold", "1", "--seed", "3", "--out", str(tmp_path / "out")]) == 0
    path = tmp_path / "out" / "ranking" / "tiny-disjoint-pinrec_ranking-seed3-fold1.json"
    assert str(path) in capsys.readouterr().out
    (run,) = read_rankings(path.parent)
    gain = run.gains["shown ndcg@10"]
    assert (gain.before, gain.after) == (run.shown["retrieval"], run.shown["head"])
    assert gain.low <= gain.after - gain.before <= gain.high
    assert [(cost.batch, cost.candidates) for cost in run.cost] == [(b, CANDIDATES) for b in (1, 12, 1, 32)]
    for cost in run.cost:
        reused, again = (cost.times[f"head, {how}"] for how in ("cache reused", "history encoded again"))
        assert cost.ratio == pytest.approx(again.median / reused.median)
        assert reused.spread[0] <= reused.median <= reused.spread[1]
    assert run.config["model"]["model"]["ranking"] is True
    assert {"unordered@10", "ndcg@10"} <= run.test.keys()
    monkeypatch.setattr("benchmarks.quality.process.TRIALS", tmp_path / "trials")
    assert ranking.main(["--data", str(folder), "--fold", "1", "--seed", "3", "--epochs", "1"]) == 0
    assert len(read_rankings(tmp_path / "trials" / "ranking")) == 1
    page = "\n".join(ranking_section([run]))
    assert f"{run.cost[0].times['head, cache reused'].median:.3g} (" in page
    assert f"{gain.after:.4f}".removeprefix("0") in page


def test_what_is_wrong_with_log_or_setting_is_a_sentence(tmp_path, capsys):
    assert ranking.main(["--data", str(tmp_path), "--out", str(tmp_path)]) == 2
    assert "holds no log; name it interactions.csv.gz" in capsys.readouterr().err
    (tmp_path / "interactions.csv").write_text("user_id,item_id,action,surface,timestamp\n1,2,click,web,3\n")
    assert ranking.main(["--data", str(tmp_path), "--fold", "5", "--out", str(tmp_path)]) == 2
    assert "fold: must be from 0 to 4, not 5" in capsys.readouterr().err


def test_where_nothing_was_measured_the_page_says_nothing_and_another_json_is_refused(tmp_path):
    assert ranking_section(read_rankings(tmp_path / "none")) == []
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(BenchmarkError, match="not a measure of this version"):
        read_rankings(tmp_path)
