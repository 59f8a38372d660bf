import json
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.quality import budgets, command, models
from benchmarks.quality.budgets_record import DEFAULT, SWEEPS, BudgetRun, named, read_budgets, swept
from benchmarks.quality.budgets_record import budgets as asked_of
from benchmarks.quality.budgets_report import Pooled, budgets_section
from benchmarks.quality.models import Entry
from benchmarks.quality.ratios import ratios, spearman
from benchmarks.quality.record import pack, pack_bits, read_runs, unpack_bits
from benchmarks.quality.report import plots_of, render
from benchmarks.quality.run import Prepared, Wanted
from pinrec.comparison import embeddings_a_step
from pinrec.contender import PinRec
from pinrec.generation import generate
from pinrec.measures import paired_bootstrap
from pinrec.retrieval import retrieve
from tests.unit.benchmarks.test_quality_report import PLACE, row

OUTCOMES = {"click": 0.5, "long_view": 0.3, "like": 0.2}
TINY = Entry(
    "pinrec.contender:PinRec", "pinrec.contender:PinRecRecipe",
    settings={"": {
        "model": {"width": 16, "layers": 1, "history": 16, "stride": 4, "hash_buckets": 64, "bag_buckets": 64,
                  "offsets_s": (0.0,)},
        "training": {"batch_users": 8, "window": 8, "uniform_negatives": 8},
        "generation": {"steps": 2, "default_outcomes": OUTCOMES},
        "epochs": 2,
    }},
    selection={"": {"embeddings": 6}},
)  # fmt: skip
OTHERWISE = replace(
    TINY.but({"": {"model": {"offsets_s": (0.0, 60.0)}, "generation": {"steps": 1}}}), weights_of="pinrec"
)


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "kuairand_pure"
    folder.mkdir()
    rng = np.random.default_rng(0)
    rows = ["user_id,item_id,action,surface,timestamp"]
    rows += [
        f"{user},{item},{(*OUTCOMES, 'skip')[rng.integers(4)]},web,{1_000 + time}"
        for user in range(40)
        for time, item in enumerate(rng.permutation(90)[: rng.integers(6, 14)])
    ]
    (folder / "interactions.csv").write_text("\n".join(rows) + "\n")
    return folder


@pytest.fixture
def take(data, monkeypatch, tmp_path, capsys):
    """Runs a command on the data; its exit code and what it said."""
    monkeypatch.setitem(models.MODELS, "pinrec", TINY)
    monkeypatch.setitem(models.MODELS, "otherwise", OTHERWISE)
    monkeypatch.setattr("benchmarks.quality.run.CHECKPOINTS", tmp_path / "none")

    def take(main, *more):
        where = ["--checkpoints", str(tmp_path / "checkpoints"), "--out", str(tmp_path / "out")]
        code = main(["--data", str(data), "--protocol", "disjoint", "--fold", "1", *where, *more])
        said = capsys.readouterr()
        return code, said.out + said.err

    return take


def test_default_lists_are_those_of_the_run_and_no_epoch_is_trained_again(take, tmp_path, monkeypatch):
    assert take(command.main, "--model", "pinrec")[0] == 0
    monkeypatch.setattr(PinRec, "fit_epoch", lambda _: pytest.fail("trained again"))
    # Settings that came after the run do not matter: the model is the recorded one.
    monkeypatch.setitem(models.MODELS, "pinrec", TINY.but({"": {"model": {"width": 32}, "epochs": 9}}))
    code, said = take(budgets.main)
    assert code == 0, said
    (run,), (of,) = read_budgets(tmp_path / "out" / "budgets"), read_runs(tmp_path / "out")
    assert (run.of, run.config, run.sizes) == (of.name, of.config, (10, 60))
    assert list(run.budgets) == list(asked_of("kuairand_pure", OUTCOMES))
    _, figures = of.per_user()
    user = np.unique(run.users(), return_inverse=True)[1]
    found = np.bincount(user, run.hit(DEFAULT, 60)) / np.bincount(user)
    np.testing.assert_allclose(found, figures["equal@60"])
    assert sum(run.met_with(name).sum() for name in OUTCOMES) >= run.targets


def test_hits_are_those_of_the_lists_that_serving_makes(data, monkeypatch):
    monkeypatch.setattr("benchmarks.quality.budgets.BATCH", 5)
    made = []
    monkeypatch.setattr(budgets, "retrieve", lambda *asked: made.append(retrieve(*asked)) or made[-1])
    prepared = Prepared(Wanted(data, "disjoint", "pinrec", fold=1), {"pinrec": TINY})
    contender, cases, config = prepared.contender, prepared.split.test, prepared.config.generation
    contender.fit_epoch()
    shares, sizes = [{"like": 1.0}, {"click": 0.5, "long_view": 0.5}], (10, 40)
    found = budgets.hits(contender, cases, shares, sizes, config)
    for at, batch in enumerate(cases.batches(5)):
        for i, (budget, k) in enumerate((budget, k) for budget in shares for k in sizes):
            requests = [replace(request, outcomes=budget) for request in contender.requests(batch, k)]
            for mine, theirs in zip(made[4 * at + i], generate(contender.bundle, requests, config), strict=True):
                assert [c.row for c in mine] == [c.row for c in theirs]
                assert [c.score for c in mine] == pytest.approx([c.score for c in theirs], abs=1e-6)
    for i in range(2):
        for j in range(2):
            rows = [{c.row for c in one} for batch in (0, 1) for one in made[4 * batch + 2 * i + j]]
            expected = [t in row for targets, row in zip(cases.targets, rows, strict=True) for t in targets.tolist()]
            assert found[i, j].tolist() == expected
    assert found[:, 1].sum() > found[:, 0].sum() > 0


def test_without_the_run_or_on_another_log_a_sentence_tells_what_is_needed(take, data):
    for main, more in ((budgets.main, ()), (command.main, ("--model", "otherwise"))):
        code, said = take(main, *more)
        assert code == 2
        assert "kuairand_pure-disjoint-pinrec-seed0-fold1 is needed first" in said
    take(command.main, "--model", "pinrec", "--epochs", "1")
    log = data / "interactions.csv"
    log.write_text(log.read_text() + "0,1,click,web,5000\n")
    code, said = take(budgets.main)
    assert code == 2
    assert "is not the log of kuairand_pure-disjoint-pinrec-seed0-fold1; take that run again" in said


def test_a_variant_of_generation_has_the_weights_of_the_trained_model(take, tmp_path, data, monkeypatch):
    take(command.main, "--model", "pinrec")
    monkeypatch.setattr(PinRec, "fit_epoch", lambda _: pytest.fail("trained again"))
    code, said = take(command.main, "--model", "otherwise")
    assert code == 0, said
    whole, variant = sorted(read_runs(tmp_path / "out"), key=lambda run: run.model != "pinrec")
    assert list(whole.test) == list(variant.test)
    assert whole.valid.keys() == variant.valid.keys()
    assert whole.test != variant.test
    assert variant.config["model"]["generation"]["steps"] == 1
    assert [epoch.epoch for epoch in variant.curve] == [
        max((e for e in whole.curve if e.valid), key=lambda e: e.valid["equal@60"]).epoch
    ]
    others = {
        "training": {"training": {"log_q": False}}, "model.dropout": {"model": {"dropout": 0.3}},
        "model.max_offset_s": {"model": {"max_offset_s": 7.0}}, "generation.mode": {"generation": {"mode": "outcome"}},
    }  # fmt: skip
    for name, settings in others.items():
        steps = {"generation": {"steps": 2}} if name == "generation.mode" else {}
        monkeypatch.setitem(models.MODELS, "otherwise", OTHERWISE.but({"": settings}).but({"": steps}))
        code, said = take(command.main, "--model", "otherwise")
        assert code == 2
        assert f"has other settings than kuairand_pure-disjoint-otherwise-seed0-fold1 ({name})" in said


def test_embeddings_a_step_differ_from_pinrec_in_generation_alone_and_make_sixteen():
    whole = models.MODELS["pinrec"].config_for("kuairand_pure", "disjoint")
    for name, each in (("e1", 1), ("e1_in_turn", 1), ("e4", 4), ("e16", 16)):
        config = models.MODELS[name].config_for("kuairand_pure", "disjoint")
        assert embeddings_a_step(config.generation, len(config.model.offsets_s)) == each
        assert each * config.generation.steps == 16
        model = config.model.model_copy(update={"offsets_s": whole.model.offsets_s})
        assert replace(config, generation=whole.generation, model=model) == whole
        assert models.MODELS[name].weights_of == "pinrec"


def test_a_sweep_goes_from_nothing_to_all_in_eleven_steps():
    found = swept(("click", ("long_view", "like")))
    assert len(found) == 11
    assert found[0] == {"long_view": 0.5, "like": 0.5}
    assert found[10] == {"click": 1.0}
    assert named(found[3]) == "click 30 %, long_view 35 %, like 35 %"
    assert all(sum(shares.values()) == pytest.approx(1) for shares in found)


def budget_run(rate, fold=0, seed=0, users=200, dataset="ml1m"):
    """A run whose users have 8 targets, liked and not in turn; `rate(shares, liked)` of them are found."""
    rng = np.random.default_rng((fold, 3))
    user = np.repeat(np.arange(users) + fold * users, 8)
    liked, luck = np.arange(len(user)) % 2 == 0, rng.random(len(user))
    asked = asked_of(dataset, {"like": 0.6, "dislike": 0.4})
    found = {
        f"{name}@{size}": pack_bits(luck < np.where(liked, rate(shares, True), rate(shares, False)))
        for name, shares in asked.items()
        for size in (10, 120)
    }
    return BudgetRun(
        dataset=dataset, seed=seed, fold=fold, of="a run", budgets=asked, sizes=(10, 120), targets=len(user),
        user=pack(np.diff(user, prepend=0)), met={"like": pack_bits(liked), "dislike": pack_bits(~liked)}, hits=found,
        config={}, commit="abc", data_sha256="0123", seconds=1.0, machine=PLACE,
    )  # fmt: skip


def steered(shares, liked):
    return 0.2 + 0.3 * shares.get("like" if liked else "dislike", 0.0)


def test_a_budget_that_steers_meets_every_claim_and_one_that_does_not_none():
    def verdicts(rate):
        text = "\n".join(budgets_section([budget_run(rate)], {}))
        lines = [
            line for line in text.splitlines() if line.startswith("|") and ("| higher |" in line or "| lower |" in line)
        ]
        return {line.split(" | ")[-1] for line in lines}, len(lines), text

    met, count, text = verdicts(steered)
    assert met == {"met |"}
    assert count == 2 * 2 * 4
    assert row(text, "recall of like | 120").endswith("| 0 of 10 | rises | met |")
    assert row(text, "recall of dislike | 120").endswith("| 0 of 10 | falls | met |")
    assert row(text, "0 %").startswith("| 0 % | .")
    assert verdicts(lambda *_: 0.3)[0] == {"none |"}
    assert verdicts(lambda shares, liked: steered(shares, not liked))[0] == {"not met |"}
    still = "\n".join(budgets_section([budget_run(lambda *_: 0.3)], {}))
    assert row(still, "recall of like | 10").endswith("+0.00 [+0.00 to +0.00] | 0 of 10 | rises | none |")


def test_budgets_of_a_model_that_is_another_now_are_said_to_be_of_an_earlier_one():
    run = budget_run(lambda *_: 0.3)
    said = {name: "earlier recipe" in "\n".join(budgets_section([run], {}, {run.of: config})) for name, config in
            {"same": run.config, "other": {"another": 1}}.items()}  # fmt: skip
    assert said == {"same": False, "other": True}


def test_a_step_the_wrong_way_is_counted_and_not_called_monotone():
    def dented(shares, liked):
        return steered(shares, liked) - (0.2 if liked and 0.65 < shares.get("like", 0) < 0.75 else 0)

    line = row("\n".join(budgets_section([budget_run(dented)], {})), "recall of like | 120")
    assert line.endswith("| 1 of 10 | rises | not met |")


def test_figures_of_several_folds_and_seeds_count_a_user_once():
    runs = [budget_run(steered, fold) for fold in (0, 1)]
    pooled, again = Pooled(runs), Pooled([*runs, *(run.model_copy(update={"seed": 1}) for run in runs)])
    figure = ("recall of {}", "like", DEFAULT, 10)
    assert pooled.of(*figure).value == pytest.approx(again.of(*figure).value)
    assert pooled.of(*figure).interval == pytest.approx(again.of(*figure).interval)
    by_user = [
        np.bincount(run.users() - run.fold * 200, run.hit(DEFAULT, 10) & run.met_with("like")) / 4 for run in runs
    ]
    assert pooled.of(*figure).value == pytest.approx(np.concatenate(by_user).mean())


def test_the_page_has_the_tables_and_the_picture(tmp_path):
    runs = [budget_run(steered)]
    assert plots_of([], runs) == ["quality-budgets-ml1m"]
    text = render([], (), runs)
    assert "(plots/quality-budgets-ml1m.svg)" in text
    assert "not run yet" in text[text.index("### KuaiRand-Pure, budgets") : text.index("### ML-1M, budgets")]
    assert "not run yet" in render([])[render([]).index("### ML-1M, budgets") :]
    path = runs[0].write(tmp_path)
    assert path.name == "ml1m-disjoint-budgets-seed0-fold0.json"
    assert BudgetRun.model_validate(json.loads(path.read_text())) == runs[0]


def test_a_ratio_is_a_mean_over_those_who_have_it_with_the_interval_of_the_paired_bootstrap():
    rng = np.random.default_rng(1)
    a, b, has = rng.random(400), rng.random(400) + 0.05, rng.random(400) < 0.5
    of_a, of_b, nothing = ratios(
        np.stack([a * has, b * has, a], axis=1), np.stack([has, has, np.zeros(400)], axis=1).astype(float)
    )
    assert nothing is None
    found, expected = of_b.less(of_a), paired_bootstrap(np.where(has, a, np.nan), np.where(has, b, np.nan))
    assert (found.mean_a, found.mean_b) == pytest.approx((expected.mean_a, expected.mean_b))
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.01)


def test_rank_correlation_halves_ties_and_is_zero_without_any_order():
    found = spearman(np.array([[1.0, 2.0, 5.0], [3.0, 2.0, 1.0], [1.0, 1.0, 1.0], [1.0, 1.0, 2.0]]))
    assert found == pytest.approx([1, -1, 0, np.sqrt(3) / 2])


def test_flags_survive_packing():
    flags = np.random.default_rng(0).random(37) < 0.3
    np.testing.assert_array_equal(unpack_bits(pack_bits(flags), 37), flags)


def test_every_sweep_is_of_outcomes_in_the_default_budget():
    for dataset, sweeps in SWEEPS.items():
        default = models.MODELS["pinrec"].config_for(dataset, "disjoint").generation.default_outcomes
        assert {name for falling, others in sweeps for name in (falling, *others)} <= default.keys()
