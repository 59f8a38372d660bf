import numpy as np
import pytest

from benchmarks.quality import report
from benchmarks.quality.budgets_record import FOLDER as BUDGETS
from benchmarks.quality.budgets_record import read_budgets
from benchmarks.quality.cold_record import FOLDER as COLD
from benchmarks.quality.cold_record import read_colds
from benchmarks.quality.compare import difference, figure, interval
from benchmarks.quality.kept_record import FOLDER as KEPT
from benchmarks.quality.kept_record import read_kept
from benchmarks.quality.plan import BASELINES, METHOD, plan
from benchmarks.quality.ranking_record import FOLDER, read_rankings
from benchmarks.quality.record import RESULTS, Epoch, Run, SideMeasure, packed_users, read_runs
from benchmarks.quality.report import DOCUMENT, PLOTS, plots_of, render, write_plots, write_report
from benchmarks.quality.settings import differences, recipes
from benchmarks.result import BenchmarkError, Machine
from benchmarks.training_speed.record import FOLDER as SPEEDS
from benchmarks.training_speed.record import read_speeds
from pinrec.measures import PerUser
from pinrec.protocols import Cases

PLACE = Machine(cpu="a CPU", cores=2, memory_gib=8.0, kernel="6.1", python="3.11.7", filesystem="ext4")
USERS = 300


def run(model, dataset="ml1m", protocol="loo", seed=0, fold=None, test=None, users=None):
    test = test or {"hr@10": 0.3, "ndcg@10": 0.18, "recall@10": 0.3, "users": 100.0, "targets": 100.0}
    return Run(
        dataset=dataset,
        protocol=protocol,
        model=model,
        seed=seed,
        fold=fold,
        test=test,
        valid={"ndcg@10": 0.19},
        config={},
        commit="abc",
        data_sha256="0123456789abcdef",
        seconds=3_600.0,
        curve=[Epoch(epoch=e, loss=1.0, seconds=e * 10.0, valid={"ndcg@10": 0.1 + e / 100}) for e in (1, 2)],
        machine=PLACE,
        users=users,
    )


def disjoint_run(model, rate, fold=0, seed=0, users=USERS, dataset="kuairand_pure"):
    """A run under `disjoint` whose users find each of four targets with this chance."""
    rng = np.random.default_rng((fold, 7))
    share = np.floor(4 * np.clip(rate + rng.normal(0, 0.1, users), 0, 1)) / 4
    outcomes = np.zeros((4, 2), bool)
    outcomes[:3, 0] = outcomes[3, 1] = True
    cases = Cases(
        np.arange(users) + fold * users, np.zeros(users, int), np.ones(users, int),
        [np.arange(4)] * users, [outcomes] * users, [np.arange(1)] * users, ("click", "like"),
    )  # fmt: skip
    figures = {
        "hr@10": share, "ndcg@10": share, "recall@10": share, "unordered@10": share, "equal@160": share,
        "diversity": np.full(users, 0.5 if model == "pinrec_oc" else 0.75),
        "unordered@10:click": np.minimum(share * 4, 3) / 3, "unordered@10:like": (share == 1) * 1.0,
    }  # fmt: skip
    per_user = PerUser(cases.user, np.full(users, 4), figures, 77)
    return run(
        model, dataset, "disjoint", seed, fold, {k: float(v) for k, v in per_user.mean().items()},
        packed_users(per_user, cases),
    )  # fmt: skip


def row(text, start, section=""):
    text = text[text.index(section) :]
    return next(line for line in text.splitlines() if line.startswith(f"| {start} |"))


def test_document_and_plots_are_what_the_results_give(tmp_path):
    runs = read_runs(RESULTS)
    budgets = read_budgets(BUDGETS)
    expected = render(runs, read_rankings(FOLDER), budgets, read_speeds(SPEEDS), read_colds(COLD), read_kept(KEPT))
    assert DOCUMENT.read_text() == expected, "run `python -m benchmarks.quality.report`"
    plots = write_plots(runs, budgets, tmp_path)
    assert {path.name for path in plots} <= {path.name for path in PLOTS.iterdir()}
    different = [path.name for path in plots if path.read_bytes() != (PLOTS / path.name).read_bytes()]
    assert not different, "run `python -m benchmarks.quality.report`"


def test_without_any_run_every_row_says_so():
    text = render([])
    for section in ("### ML-1M", "### Amazon Beauty"):
        assert "not run yet" in row(text, "PinRec", section)
    for section in ("## KuaiRand-Pure, disjoint", "## ML-1M, disjoint"):
        assert "not run yet" in row(text, "PinRec-MT,OC", section)
    assert "not run yet" in row(text, "no multi-hash")
    assert plots_of([]) == []


def test_leave_one_out_tells_mean_and_spread_of_the_seeds_and_whether_floor_and_goal_are_reached():
    runs = [
        run("pinrec", seed=seed, test={"hr@10": hr, "ndcg@10": 0.19, "users": 1.0})
        for seed, hr in enumerate((0.32, 0.33, 0.34))
    ]
    text = render(runs)
    assert row(text, "PinRec", "### ML-1M").startswith("| PinRec | .3300 [.3200 to .3400] | .1900 ")
    assert "mean of 3 of 3 seeds: +4.5 % / +2.3 % against the best public figures (the floor: reached)" in text
    assert "-1.5 % / -5.0 % against the goal (not reached)" in text


def test_a_reproduction_tells_how_far_off_it_is():
    low = run("sasrec", "amazon_beauty", test={"hr@10": 0.0986 * 0.95, "ndcg@10": 0.0597, "users": 1.0})
    near = run("sasrec", "ml1m", test={"hr@10": 0.3152 * 0.97, "ndcg@10": 0.1821 * 1.05, "users": 1.0})
    section = "## Public figures reproduced"
    text = render([low, near])
    assert "| -5.0 % / +0.0 % | no |" in row(text, "SASRec, full softmax | Amazon Beauty", section)
    assert "| -3.0 % / +5.0 % | yes |" in row(text, "SASRec, full softmax | ML-1M", section)
    assert "\nSASRec, full softmax on Amazon Beauty: not explained yet.\n" in text
    text = render([run("hstu", "amazon_beauty", test={"hr@10": 0.09, "ndcg@10": 0.05, "users": 1.0})])
    assert "\nHSTU on Amazon Beauty: its bias of times has nothing to read" in text


def test_a_baseline_is_marked_until_it_has_reproduced_all_its_public_figures():
    def page(**rates):
        public = {"sasrec": {"amazon_beauty": (0.0986, 0.0597), "ml1m": (0.3152, 0.1821)},
                  "hstu": {"amazon_beauty": (0.0945, 0.0543)}}  # fmt: skip
        loo = [
            run(model, data, test={"hr@10": rates[model] * hr, "ndcg@10": rates[model] * ndcg, "users": 1.0})
            for model in rates
            for data, (hr, ndcg) in public[model].items()
        ]
        tested = {"sasrec": 0.3, "hstu": 0.2, "pinnerformer": 0.1, "pinrec_uc": 0.4}
        text = render([*loo, *(disjoint_run(model, rate) for model, rate in tested.items())])
        return text, text[text.index("## KuaiRand-Pure, disjoint") : text.index("## ML-1M, disjoint")]

    text, section = page(hstu=0.9)
    for name in ("SASRec, full softmax †", "HSTU †", "PinnerFormer", "popular, all time", "PinRec-UC"):
        assert row(section, name)
    assert row(section, "PinRec-UC over SASRec, full softmax † | equal@160")
    legend = next(line for line in section.splitlines() if line.startswith("†"))
    assert "SASRec, full softmax: Amazon Beauty not run yet, ML-1M not run yet; " in legend
    assert "HSTU: Amazon Beauty missed, -10.0 % / -10.0 %; " in legend
    assert legend.endswith(
        "No public figure to reproduce: popular, all time; popular, recent; two-tower; PinnerFormer."
    )
    beauty = text[text.index("### Amazon Beauty") : text.index("## Public figures")]
    assert row(beauty, "HSTU †")
    assert row(beauty, "SASRec, full softmax"), "what has no figure in a table is not marked"
    assert "SASRec" not in next(line for line in beauty.splitlines() if line.startswith("†"))
    _, section = page(hstu=0.9, sasrec=0.97)
    assert row(section, "SASRec, full softmax")
    assert row(section, "PinRec-UC over SASRec, full softmax | equal@160")
    assert row(section, "HSTU †")
    low = run("sasrec", "amazon_beauty", test={"hr@10": 0.0986, "ndcg@10": 0.0597, "users": 1.0})
    text = render([low, disjoint_run("sasrec", 0.3)])
    assert row(text, "SASRec, full softmax", "### Amazon Beauty")
    assert row(text, "SASRec, full softmax †", "## KuaiRand-Pure, disjoint")
    assert "Amazon Beauty reproduced, +0.0 % / +0.0 %, ML-1M not run yet" in text


def test_the_page_says_who_is_told_what_and_what_pinrec_is_without_features():
    def told(rate, folds=(0, 1)):
        runs = [disjoint_run("sasrec", 0.4, fold) for fold in range(5)]
        text = render([*runs, *(disjoint_run("ids_alone", rate, fold) for fold in folds)])
        section = text[text.index("## KuaiRand-Pure, disjoint") : text.index("## ML-1M, disjoint")]
        return next(line for line in section.splitlines() if line.startswith("Who reads what"))

    assert "its tag, author" in told(0.3)
    assert "against SASRec, full softmax † in equal@160 on the same 2 folds: its lead over the baselines" in told(0.3)
    assert told(0.5).endswith("on the same 2 folds.")
    assert "Told no features" not in told(0.3, ())
    text = render([])
    assert "its genres, year and the words" in text[text.index("## ML-1M, disjoint") :]
    assert "PinRec is told an item's genres" in text[text.index("### ML-1M") : text.index("### Amazon")]


def test_a_measure_of_other_settings_than_the_tables_says_in_what():
    def settings(**model):
        return {"model": {"width": 64, "content_width": 0, **model}, "epochs": 8, "beginnings": {}}

    def measured(dataset, config):
        return SideMeasure(dataset=dataset, seed=0, users=1, epoch=1, config=config, commit="a", seconds=1.0,
                           machine=PLACE)  # fmt: skip

    of = recipes([disjoint_run("pinrec", 0.4).model_copy(
        update={"config": {"model": settings(tower="residual", offsets_s=[1.0, 86400.0], gain=6.0, mask=0.0)}}
    )])  # fmt: skip
    same = settings(tower="residual", offsets_s=[1.0, 86400.0], gain=6.0)
    assert differences([measured("kuairand_pure", same)], of) == []
    assert differences([measured("kuairand_pure", {})], {}) == []
    earlier = settings(tower="mlp", offsets_s=[1.0, 432000.0], content_width=32) | {"epochs": 9}
    (line,) = differences([measured("kuairand_pure", same), measured("town", earlier)], of)
    assert line.endswith(
        "disjoint users: town, seed 0: `model.tower` mlp in place of residual, `model.offsets_s` [1, 432000] in place "
        "of [1, 86400], `model.gain` none in place of 6, `epochs` 9 in place of 8.\n"
    )


def test_differences_are_paired_and_a_goal_is_met_only_when_decided():
    runs = [
        disjoint_run(model, rate, fold)
        for fold in range(5)
        for model, rate in (("pinrec_uc", 0.4), ("pinrec_oc", 0.4), ("pinrec", 0.5), ("sasrec", 0.3))
    ]
    text = render(runs)
    section = "## KuaiRand-Pure, disjoint"
    same = row(text, "PinRec-OC over PinRec-UC | unordered@10", section)
    assert "| 5 runs each |" in same
    assert "| +0.0 % [+0.0 % to +0.0 %] |" in same
    assert same.endswith("| at least +2.8 % | none |")
    better = row(text, "PinRec-MT,OC over PinRec-UC | unordered@10", section)
    assert "none" not in better
    assert better.endswith("| at least +11.0 % | met |")
    assert row(text, "PinRec-UC over SASRec, full softmax † | equal@160", section).endswith("| more | met |")
    assert row(text, "PinRec-UC over SASRec, full softmax † | recall@10", section).endswith("| more | met |")
    assert "+50.0 %" in row(text, "PinRec-MT,OC over PinRec-OC | diversity", section)
    assert "| 5 of 5 |" in row(text, "PinRec-MT,OC", section)
    assert "| Model | click | like |" in text[text.index(section) :]


def test_the_order_of_all_models_is_decided_only_once_every_baseline_has_run():
    def chain(rates, name):
        text = render([disjoint_run(model, rate) for model, rate in rates.items()])
        claim = "PinRec-MT,OC > PinRec-OC > PinRec-UC" + (" > every baseline" if "equal" in name else "")
        return row(text, f"{claim} | {name}", "## KuaiRand-Pure, disjoint")

    ordered = {"pinrec_uc": 0.4, "pinrec_oc": 0.5, "pinrec": 0.6}
    assert "not run yet" in chain({"pinrec": 0.6}, "unordered@10")
    assert chain(ordered, "unordered@10").endswith("| met |")
    assert chain(ordered | {"pinrec_oc": 0.4}, "unordered@10").endswith("| none |")
    assert chain(ordered | {"pinrec_oc": 0.7}, "unordered@10").endswith("| not met |")
    assert "not run yet" in chain(ordered | {"sasrec": 0.3}, "equal@160")
    assert chain(ordered | {"sasrec": 0.5}, "equal@160").endswith("| not met |")
    assert chain(ordered | dict.fromkeys(BASELINES, 0.3), "equal@160").endswith("| met |")
    assert chain(ordered | dict.fromkeys(BASELINES, 0.3) | {"tiger": 0.45}, "equal@160").endswith("| not met |")


def test_what_is_not_comparable_between_families_is_given_for_pinrec_alone():
    text = render([disjoint_run(model, 0.4) for model in ("sasrec", "pinrec")])
    section = "## KuaiRand-Pure, disjoint"
    assert [cell == "-" for cell in row(text, "SASRec, full softmax †", section).split(" | ")[2:7]] == [
        False, False, False, True, True
    ]  # fmt: skip
    assert "-" not in row(text, "PinRec-MT,OC", section).split(" | ")[2:]
    assert "over SASRec, full softmax † | unordered" not in text
    assert "SASRec" not in text[text.index("### By outcome", text.index(section)) : text.index("## ML-1M, disjoint")]


def test_models_are_compared_on_the_folds_that_both_have_and_seeds_are_averaged():
    ours = [disjoint_run("pinrec", 0.5, fold, seed) for fold in (0, 1) for seed in (0, 1)]
    theirs = [disjoint_run("sasrec", 0.3, 1, seed) for seed in (0, 1, 2)]
    found = difference(theirs, ours, "unordered@10")
    _, figures = ours[2].per_user()
    assert found.mean_b == pytest.approx(figures["unordered@10"].mean())
    once = difference(theirs[:1], ours[2:3], "unordered@10")
    assert (found.low, found.high) == (once.low, once.high), "a user counts once, whatever the number of seeds"
    assert difference([], ours, "unordered@10") is None
    assert interval(ours, "unordered@10").mean_b == pytest.approx(figure(ours, "unordered@10"))


def test_runs_on_other_users_are_not_compared():
    with pytest.raises(ValueError, match="tested other users; take both runs again"):
        difference([disjoint_run("sasrec", 0.3)], [disjoint_run("pinrec", 0.3, users=USERS - 1)], "unordered@10")


def test_an_ablation_stands_beside_the_whole_on_the_same_folds():
    runs = [disjoint_run("pinrec", 0.5, fold) for fold in range(5)] + [
        disjoint_run("no_logq", 0.3, fold) for fold in (0, 1)
    ]
    cells = row(render(runs), "no logQ", "## Ablations").split(" | ")
    assert cells[2].startswith(f"{figure(runs[:2], 'equal@160'):.4f}"[1:])
    assert cells[3].startswith("-")
    assert cells[4] == cells[3]


def test_embeddings_a_step_are_compared_with_one_a_step():
    text = render(
        [disjoint_run(model, rate) for model, rate in (("e1", 0.3), ("e1_in_turn", 0.4), ("e16", 0.4), ("pinrec", 0.4))]
    )
    assert "not run yet" in row(text, "4 embeddings a step over 1 embedding a step | unordered@10")
    more = row(text, "16 embeddings a step over 1 embedding a step | unordered@10")
    assert more.split(" | ")[-1].startswith("+")
    claim = row(text, "PinRec-MT,OC over 1 embedding a step | unordered@10")
    assert claim.endswith("| at least +16.0 % | met |")
    in_turn = row(text, "PinRec-MT,OC over 1 embedding a step, outcomes in turn | unordered@10")
    assert in_turn.endswith("| at least +16.0 % | none |")
    assert "generating one at a time" in text
    assert "generating one at a time" not in render([disjoint_run("pinrec", 0.4)])


def test_document_and_plots_are_written(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "DOCUMENT", tmp_path / "quality.md")
    monkeypatch.setattr(report, "PLOTS", tmp_path / "plots")
    runs = [
        run("pinrec"),
        run("sasrec", "amazon_beauty"),
        *(disjoint_run(model, 0.4) for model in ("popular", "pinrec")),
    ]
    for one in runs:
        path = one.write(tmp_path / "results")
        assert path.stat().st_size < 100_000
    assert read_runs(tmp_path / "results") == sorted(runs, key=lambda run: run.name)
    assert write_report(tmp_path / "results").read_text() == render(read_runs(tmp_path / "results"))
    assert sorted(path.name for path in (tmp_path / "plots").iterdir()) == [
        "quality-curves.svg", "quality-kuairand_pure.svg"
    ]  # fmt: skip
    (tmp_path / "results" / "x.json").write_text("{}")
    with pytest.raises(BenchmarkError):
        write_report(tmp_path / "results")


def test_the_plan_holds_every_run_of_the_page_once():
    names = [planned.name for planned in plan()]
    assert len(names) == len(set(names))
    for model in (*METHOD, *BASELINES):
        assert {f"kuairand_pure-disjoint-{model}-seed0-fold{fold}" for fold in range(5)} <= set(names)
        assert {f"ml1m-disjoint-{model}-seed{seed}-fold0" for seed in range(3)} <= set(names)
    of_budgets = [planned for planned in plan() if planned.model == "budgets"]
    assert len(of_budgets) == 5 + 3
    for planned in of_budgets:
        assert names.index(planned.name.replace("budgets", "pinrec")) < names.index(planned.name)
    for model in ("e1", "e1_in_turn", "e4", "e16"):
        for fold in range(2):
            of = [f"kuairand_pure-disjoint-{name}-seed0-fold{fold}" for name in ("pinrec", model)]
            assert names.index(of[0]) < names.index(of[1])
    assert {f"{data}-loo-pinrec-seed{seed}" for data in ("ml1m", "amazon_beauty") for seed in range(3)} <= set(names)
