import pytest

from benchmarks import command, ingest
from benchmarks.command import RESULTS, main
from benchmarks.plots import draw
from benchmarks.report import DOCUMENT, PLOTS, read_results, render
from benchmarks.result import ROOT, BenchmarkError, Curve, Machine, Result, Stage, commit, machine, percentile, summary

PLACE = Machine(cpu="a CPU", cores=2, memory_gib=8.0, kernel="6.1", python="3.11.7", filesystem="ext4")


def result(**changes):
    return Result(
        **{
            "id": "P9",
            "name": "things done",
            "value": 50.0,
            "unit": "things/s",
            "baseline_name": "doing nothing",
            "baseline": 100.0,
            "ratio": 0.5,
            "goal": ">= 60% of the baseline",
            "met": False,
            "spread": {"value": (40.0, 60.0), "baseline": (90.0, 1_500.0)},
            "samples": {"value": [40.0, 50.0, 60.0], "baseline": [90.0, 100.0, 1_500.0]},
            "details": {"p99_ms": 12.5},
            "stages": [Stage(name="first half", value=3.0, unit="ms")],
            "protocol": "How it is done.",
            "seconds": 1.0,
            "quick": False,
            "machine": PLACE,
            "commit": "abc",
            **changes,
        }
    )


def test_document_and_plots_are_what_the_results_give(tmp_path):
    if not list(RESULTS.glob("P*.json")):
        pytest.skip("no results yet; `make bench` takes them")
    results = read_results(RESULTS)
    assert DOCUMENT.read_text() == render(results), "run `python -m benchmarks --report`"
    for r in results:
        draw(r, tmp_path / f"{r.id}.svg")
    drawn = [path.name for path in tmp_path.iterdir() if path.read_bytes() != (PLOTS / path.name).read_bytes()]
    assert not drawn, "run `python -m benchmarks --report`"


def test_table_tells_value_baseline_ratio_and_a_missed_goal():
    row = next(line for line in render([result()]).splitlines() if line.startswith("| [P9]"))
    assert "50 things/s [40 to 60], p99 12.5 ms |" in row
    assert "100 things/s [90 to 1,500] (doing nothing)" in row
    assert "| 0.50 | >= 60% of the baseline | no |" in row


def test_a_miss_is_explained_with_and_without_stages():
    explained = "of the time its interpreter's lock is held, 59 % is the event loop"
    stages = [Stage(name="waiting for a batch", value=1.25, unit="ms")]
    for text in (render([result(id="P4", stages=[])]), render([result(id="P4", stages=stages)])):
        assert explained in text
        assert ("| waiting for a batch | 1.25 ms |" in text) == ("| Stage" in text)
    assert "| waiting for a batch |" in text
    assert explained not in render([result(id="P5")])


def test_growth_is_that_of_the_last_decade():
    """What is flat at first and then in proportion grows in proportion: two decades together would hide it."""
    sizes = {"10": 5.0, "100": 8.0, "1000": 80.0}
    details = {f"search_ms_at_{size}": ms for size, ms in sizes.items()} | {f"read_us_at_{size}": 3.0 for size in sizes}
    text = render([result(id="P13", details=details)])
    assert "Growth from 100 to 1,000 alone" in text
    assert "search ms 1.00, read us 0.00." in text


@pytest.mark.parametrize("figure", ["unordered@10", "equal@160"])
def test_recall_of_one_step_is_told_as_the_page_of_quality_has_it(figure):
    row = f"| 16 embeddings a step over 1 embedding a step | {figure} |"
    (line,) = (line for line in (ROOT / "docs" / "quality.md").read_text().splitlines() if line.startswith(row))
    difference = line.split("|")[5].split("[")[0].strip()
    assert f"({difference})" in render([result(id="P3")]), "benchmarks/notes.py is of another run"


def test_make_bench_took_less_than_25_minutes():
    took = {r.id: r.seconds for r in read_results(RESULTS)}
    assert sum(took[name] for name in command.IDS) < 25 * 60
    (by_name,) = (line for line in DOCUMENT.read_text().splitlines() if "only by name" in line)
    assert all(f"{name}," in by_name or f"{name} " in by_name for name in command.LONG)


@pytest.mark.parametrize("goal", ["reported", "it works; reported"])
def test_a_goal_without_a_bound_is_never_met(goal):
    text = render([result(goal=goal, met=True)])
    assert f"| {goal} | reported |" in text
    assert f"Goal: {goal}.\n" in text
    bound = render([result(met=True)])
    assert "| yes |" in bound
    assert "baseline: met." in bound


def test_document_names_the_machine_and_the_commit_of_each_measure():
    text = render([result(id="P1"), result(id="P2"), result(id="P3", commit="def")])
    assert f"P1, P2: {PLACE}; commit abc." in text
    assert f"P3: {PLACE}; commit def." in text


def test_quick_figures_are_marked():
    assert "not to be quoted" in render([result(quick=True)])
    assert "not to be quoted" not in render([result()])


def test_results_survive_their_files(tmp_path):
    (tmp_path / "P9.json").write_text(result().model_dump_json())
    assert read_results(tmp_path) == [result()]


def test_a_curve_is_drawn_beside_the_repeats(tmp_path):
    curve = Curve(x_name="events/s", y_name="ms", x=[1.0, 2.0], y={"p50": [3.0, 4.0]})
    draw(result(curve=curve), tmp_path / "with.svg")
    draw(result(), tmp_path / "without.svg")
    draw(result(), tmp_path / "again.svg")
    assert len((tmp_path / "with.svg").read_text()) > len((tmp_path / "without.svg").read_text())
    assert (tmp_path / "again.svg").read_bytes() == (tmp_path / "without.svg").read_bytes()


def test_no_results_and_broken_results_are_told(tmp_path, capsys):
    with pytest.raises(BenchmarkError, match="make bench"):
        read_results(tmp_path)
    (tmp_path / "P9.json").write_text('{"id": "P9"}')
    assert main(["--report", "--out", str(tmp_path)]) == 2
    assert "P9.json" in capsys.readouterr().err.replace("\n", "")


def test_a_measure_that_fails_is_told_and_the_exit_code_says_it(tmp_path, capsys, monkeypatch):
    def fail(*_):
        raise BenchmarkError("41 of 42 events were read")

    monkeypatch.setattr(ingest, "measure", fail)
    assert main(["--only", "P5", "--quick", "--out", str(tmp_path)]) == 1
    assert "41 of 42 events were read" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_value_is_the_median_and_spread_its_range():
    assert summary([3.0, 1.0, 10.0]) == (3.0, (1.0, 10.0))
    assert percentile([0.0, 10.0], 50) == 5.0
    with pytest.raises(BenchmarkError, match="nothing was measured"):
        summary([])


def test_machine_and_commit_are_those_of_this_checkout(tmp_path):
    assert machine(tmp_path).filesystem != "unknown"
    assert machine(tmp_path).cores >= 1
    assert commit()


def test_measures_taken_elsewhere_change_no_document(tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(command, "_run", lambda *_: True)
    monkeypatch.setattr(command, "write_report", lambda out: written.append(out) or "a page")
    assert command.main(["--only", "P5", "--out", str(tmp_path)]) == 0
    assert command.main(["--only", "P5", "--quick"]) == 0
    assert written == []
    assert command.main(["--report", "--out", str(tmp_path)]) == 0
    assert command.main(["--only", "P5"]) == 0
    assert written == [tmp_path, command.RESULTS]
