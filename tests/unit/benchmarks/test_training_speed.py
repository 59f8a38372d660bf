import json
import sys

import pytest

from benchmarks import environment as making
from benchmarks.quality.record import RESULTS
from benchmarks.quality.report import render
from benchmarks.result import BenchmarkError
from benchmarks.training_speed import command, environment, pinrec_side
from benchmarks.training_speed.command import main
from benchmarks.training_speed.environment import REQUIREMENTS, recbole_python, recbole_version
from benchmarks.training_speed.inputs import Events, recbole_config, write_atomic
from benchmarks.training_speed.measure import FULL, QUICK, check_same, measure, result_of
from benchmarks.training_speed.record import read_speeds
from benchmarks.training_speed.rows import covering
from benchmarks.training_speed.side import Pass, Side
from pinrec.protocols import leave_one_out
from tests.unit.pinrec.small_split import random_user_log, user_log

GIVEN = Events(events=100, items=9, predictions=90)
# A stand-in for a side: it echoes how often it was asked, and fails when told to.
ECHO = """
import json, sys
print("not an answer", file=sys.stderr)
facts = json.loads(sys.stdin.readline())
print(json.dumps(facts), flush=True)
for line in sys.stdin:
    asked = json.loads(line)
    if asked["train"] == "too much":
        sys.exit("no memory left")
    print(json.dumps({"seconds": 2.0, "steps": asked["steps"], "predictions": 8, "events": 16}), flush=True)
"""
NOTHING = {"rows": 0, "items": 0, "threads": 1}


def quiet(*_):
    pass


def speed(quick=False, rate=1.0):
    passes = {
        "value": [Pass(1.0, 10, 1_000.0 * rate * n, 2_000.0) for n in (1, 3, 2)],
        "baseline": [Pass(10.0, 1, 100.0 * n, 5_000.0) for n in (1, 2, 6)],
        "every_position": [Pass(0.5, 5, 400.0, 400.0)] * 3,
    }
    return result_of(passes, GIVEN, batch=100, threads=2, quick=quick, seconds=12.0, work=RESULTS)


def folder_with_log(tmp_path, users=8, events=7):
    rows = [
        f"u{user},i{(user * 3 + 7 * place) % 20:02},click,web,{1_000 + 10 * place}"
        for place in range(events)
        for user in range(users)
    ]
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "interactions.csv").write_text(
        "\n".join(["user_id,item_id,action,surface,timestamp", *rows]) + "\n"
    )
    return tmp_path / "tiny"


# What RecBole is given


def lines(path):
    return [line.split("\t") for line in path.read_text().splitlines()]


def test_recbole_is_given_the_training_events_in_their_order_and_the_whole_catalogue(tmp_path):
    # Equal times: the order of the rows decides.
    split = leave_one_out(
        user_log(
            ("a", 3, "click", 5.0), ("a", 1, "click", 5.0), ("a", 2, "click", 1.0), ("a", 4, "save", 8.0),
            ("a", 5, "click", 9.0), ("b", 6, "click", 2.0), ("b", 7, "click", 3.0), ("b", 8, "click", 4.0), items=10,
        )
    )  # fmt: skip
    given = write_atomic(split, tmp_path, "log")
    assert lines(tmp_path / "log" / "log.inter") == [
        ["user_id:token", "item_id:token", "timestamp:float"],
        ["0", "2", "0"], ["0", "3", "1"], ["0", "1", "2"], ["1", "6", "0"],
    ]  # fmt: skip
    assert lines(tmp_path / "log" / "log.item") == [["item_id:token"], *([str(n)] for n in range(10))]
    assert given == Events(events=4, items=10, predictions=2)


def test_a_trial_has_the_first_users_alone(tmp_path):
    split = leave_one_out(random_user_log())
    whole, some = (write_atomic(split, tmp_path / str(users), "log", users) for users in (None, 3))
    assert {row[0] for row in lines(tmp_path / "3" / "log" / "log.inter")[1:]} == {"0", "1", "2"}
    assert 0 < some.events < whole.events == split.train.sum()
    assert whole.predictions == whole.events - 20


def test_recbole_is_told_the_sizes_of_both_and_takes_all_events_for_training(tmp_path):
    config = recbole_config(tmp_path, length=200, batch=1_900)
    assert (config["MAX_ITEM_LIST_LENGTH"], config["train_batch_size"]) == (200, 1_900)
    assert (config["hidden_size"], config["n_layers"], config["loss_type"]) == (64, 2, "CE")
    assert config["train_neg_sample_args"] is None, "RecBole refuses negatives with the softmax"
    assert config["eval_args"]["split"] == {"RS": [1.0, 0.0, 0.0]}
    assert config["eval_args"]["order"] == "TO"


def test_windows_hold_every_target_once():
    # A user of 7 targets with rows cut at 3, one of 2, one of 1: a row holds the targets of as many rows up to it.
    user, length = [0] * 7 + [1] * 2 + [2], [1, 2, 3, 3, 3, 3, 3, 1, 2, 1]
    chosen = covering(user, length)
    held = [(user[row], row - back) for row in chosen for back in range(length[row])]
    assert sorted(held) == list(zip(user, range(10), strict=True))
    assert len(chosen) == 5


# Its environment


def test_requirements_are_pinned_and_no_other_torch_is_among_them():
    packages = [line for line in REQUIREMENTS.read_text().splitlines() if line and not line.startswith("#")]
    assert all(line.count("==") == 1 for line in packages)
    assert f"recbole=={recbole_version()}" in packages
    assert not any(line.startswith("torch") for line in packages)
    assert "recbole" not in (REQUIREMENTS.parents[2] / "pyproject.toml").read_text()


def test_an_environment_that_cannot_be_made_is_told_with_what_was_said(tmp_path, monkeypatch):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho No space left >&2\nexit 1\n")
    python.chmod(0o755)
    for executable, why in ((python, "No space left"), (tmp_path / "none", "No such file")):
        monkeypatch.setattr(sys, "executable", str(executable))
        with pytest.raises(BenchmarkError, match=rf"could not be made in .*recbole: .*{why}.*; it needs the package"):
            recbole_python(tmp_path / "recbole", quiet)
    assert not (tmp_path / "recbole" / "made-of.txt").exists()


def test_an_environment_is_made_once_and_anew_for_other_requirements(tmp_path, monkeypatch):
    made = []

    def pretend(arguments, folder):
        made.append(arguments)
        packages = folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
        packages.mkdir(parents=True, exist_ok=True)

    requirements = tmp_path / "requirements.txt"
    requirements.write_text("recbole==1.2.1\n")
    monkeypatch.setattr(environment, "REQUIREMENTS", requirements)
    monkeypatch.setattr(making, "_run", pretend)
    python = recbole_python(tmp_path / "recbole", quiet)
    assert python == tmp_path / "recbole" / "bin" / "python"
    once = len(made)
    recbole_python(tmp_path / "recbole", quiet)
    assert len(made) == once > 0
    requirements.write_text("recbole==1.2.0\n")
    recbole_python(tmp_path / "recbole", quiet)
    assert len(made) == 2 * once
    (path,) = (tmp_path / "recbole").glob("lib/*/site-packages/*.pth")
    assert path.read_text().strip() in sys.path, "torch is looked for where the project has it"


# The processes


def side(tmp_path, code=ECHO):
    return Side("theirs", [sys.executable, "-c", code], NOTHING, tmp_path / "run")


def test_a_side_tells_its_facts_and_trains_when_asked(tmp_path):
    with side(tmp_path) as process:
        assert process.facts == NOTHING
        assert process.train("rows", 3) == Pass(2.0, 3, 8, 16)
        assert process.train("rows", 4).predictions_per_s == 4.0


def test_a_side_that_ends_is_told_with_its_last_words(tmp_path):
    with side(tmp_path) as process, pytest.raises(BenchmarkError, match=r"theirs ended .*: no memory left; see .*log"):
        process.train("too much", 1)
    with pytest.raises(BenchmarkError, match="theirs ended before its time: ModuleNotFoundError"):
        side(tmp_path, "import nowhere_to_be_found")
    with pytest.raises(BenchmarkError, match="want of memory"):
        side(tmp_path, "import os; os.kill(os.getpid(), 9)")


def test_sides_that_have_not_the_same_to_learn_are_refused():
    check_same({"rows": 90, "items": 9, "threads": 2}, GIVEN, threads=2)
    for wrong in ({"rows": 89}, {"items": 10}, {"threads": 1}):
        with pytest.raises(BenchmarkError, match="would not do the same work"):
            check_same({"rows": 90, "items": 9, "threads": 2} | wrong, GIVEN, threads=2)


def test_pinrec_counts_what_it_learns_from_in_timed_steps_alone(tmp_path):
    data = folder_with_log(tmp_path)
    settings = {
        "model": {"width": 16, "layers": 1, "history": 8, "hash_buckets": 64, "bag_buckets": 64, "id_width": 16},
        "training": {"window": 8, "batch_users": 4},
    }  # fmt: skip
    facts, trainings = pinrec_side.prepare({"threads": 1, "data": str(data), "settings": settings})
    assert facts["rows"] == 8 * 5
    assert facts["items"] == 20
    done = trainings["pinrec"](4)
    assert done["steps"] == 4
    assert done["seconds"] > 0
    # Six windows of five fit the 32 positions of a step, or the two that are left: each predicts at all but the last.
    assert done["predictions"] / 4 <= 6 * 4
    assert done["predictions"] / done["events"] == pytest.approx(4 / 5)


def test_both_sides_take_turns_in_rounds_of_alternating_order(tmp_path, monkeypatch):
    turns, batches = [], []

    class Pretended:
        def __init__(self, name, command, job, folder):
            self.name, self.facts = name, {"rows": 8 * 4, "items": 20, "threads": 1}
            batches.append(job.get("config", {}).get("train_batch_size"))

        def train(self, what, steps):
            turns.append(what)
            return Pass(1.0 if self.name == "PinRec" else 10.0, steps, 7.0 * steps, 9.0 * steps)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr("benchmarks.training_speed.measure.Side", Pretended)
    monkeypatch.setattr("benchmarks.training_speed.measure.recbole_python", lambda folder, _: folder)
    result = measure(folder_with_log(tmp_path), tmp_path / "work", quick=True, progress=quiet)
    once = ["pinrec", "rows", "windows"]
    assert turns == [*once, *once, *once[::-1]], "a warm-up, then a round each way"
    assert batches == [None, 7], "as many predictions a step as PinRec makes"
    assert result.ratio == pytest.approx(10 * QUICK.steps["pinrec"] / QUICK.steps["rows"])
    assert result.quick
    assert FULL.repeats >= 5


# Arithmetic, record and report


def test_figures_are_medians_with_their_spread_and_the_goal_is_of_the_ratio():
    result = speed()
    assert (result.value, result.baseline) == (2_000.0, 20.0)
    assert result.spread == {"value": (1_000, 3_000), "baseline": (10, 60), "every_position": (800, 800)}
    assert result.samples["baseline"] == [10.0, 20.0, 60.0]
    assert (result.ratio, result.met) == (100.0, True)
    assert result.details["value_step_ms"] == 100.0
    assert result.details["baseline_predictions_per_step"] == 200.0
    assert result.details["every_position_per_s"] == 800.0
    assert (speed(rate=0.0199).ratio, speed(rate=0.0199).met) == (1.99, False)
    assert (speed(rate=0.02).ratio, speed(rate=0.02).met) == (2.0, True)


def section(text):
    return text[text.index("## Training speed") :]


def test_the_page_tells_all_sides_or_that_it_is_not_run():
    assert "not run yet" in section(render([])).split("## ")[1]
    text = section(render([], speeds={"ml1m": speed()}))
    assert "not run yet" not in text
    rows = [line for line in text.splitlines() if line.startswith("| ML-1M |")]
    assert rows[0].startswith("| ML-1M | PinRec | 2,000 [1,000 to 3,000] | 100 | 200 |")
    assert "SASRec | 20 [10 to 60] |" in rows[1]
    assert rows[1].endswith("| 100.0x |")
    assert rows[2].endswith("| 2.5x |")
    assert "goal at least 2x RecBole's SASRec: met. " in text
    assert "not to be quoted" not in text
    assert "not to be quoted" in section(render([], speeds={"ml1m": speed(quick=True)}))


def test_a_measure_survives_its_file_and_another_one_is_refused(tmp_path):
    assert read_speeds(tmp_path / "none") == {}
    (tmp_path / "ml1m.json").write_text(speed().model_dump_json())
    assert read_speeds(tmp_path) == {"ml1m": speed()}
    (tmp_path / "ml1m.json").write_text(json.dumps({"id": "training_speed"}))
    with pytest.raises(BenchmarkError, match=r"ml1m\.json: not a measure"):
        read_speeds(tmp_path)


# The command


def test_the_command_leaves_a_json_and_a_trial_changes_no_document(tmp_path, monkeypatch, capsys):
    written = []
    monkeypatch.setattr(command, "measure", lambda data, work, quick, progress: speed(quick=quick))
    monkeypatch.setattr(command, "write_report", written.append)
    monkeypatch.setattr(command, "WORK", tmp_path / "work")
    monkeypatch.setattr(command, "FOLDER", tmp_path / "results")
    assert main(["--data", "data/ml1m", "--quick"]) == 0
    assert read_speeds(tmp_path / "work" / "quick") == {"ml1m": speed(quick=True)}
    assert not written
    assert main(["--data", "data/ml1m"]) == 0
    assert read_speeds(tmp_path / "results") == {"ml1m": speed()}
    assert len(written) == 1
    assert "2,000 predictions/s; RecBole 1.2.1 SASRec: 20 (100x); its network at every position: 800 (2.5x)" in (
        capsys.readouterr().out
    )


def test_what_cannot_be_measured_is_told_with_a_remedy(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "WORK", tmp_path / "work")
    assert main(["--data", str(tmp_path / "nowhere")]) == 2
    assert "nowhere" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert main(["--data", str(tmp_path / "empty")]) == 2
    assert "holds no log; name it interactions.csv.gz" in capsys.readouterr().err
    monkeypatch.setattr(command, "measure", lambda *_: interrupt())
    assert main(["--data", "data/ml1m"]) == 130
    assert "the same command begins again" in capsys.readouterr().err


def interrupt():
    raise KeyboardInterrupt


def test_help_has_an_example(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "Example: python -m benchmarks.training_speed --data ../data/ml1m --quick" in " ".join(
        capsys.readouterr().out.split()
    )
