import sys
from pathlib import Path

import pytest

from benchmarks.quality import queue
from benchmarks.quality.plan import BY_TIME, TOWN, Planned, plan
from benchmarks.quality.record import RESULTS

RUNS = [Planned("tiny", "loo", "good"), Planned("tiny", "loo", "bad"), Planned("tiny", "disjoint", "good", fold=1)]


@pytest.fixture
def take(monkeypatch, tmp_path, capsys):
    """Runs the queue; a process in place of each run writes its JSON, or fails where the model is called bad."""
    (tmp_path / "data" / "tiny").mkdir(parents=True)
    monkeypatch.setattr(queue, "plan", lambda: RUNS)
    monkeypatch.setattr(queue, "_LOCK", tmp_path / ".pinrec" / "lock")
    monkeypatch.setattr(Planned, "arguments", lambda planned, _: [planned.name, planned.model])
    out = tmp_path / "out"
    out.mkdir()
    script = tmp_path / "python"
    script.write_text(f'#!/bin/sh\n[ "$4" = bad ] && exit 3\n[ "$4" = stop ] && exit 130\ntouch {out}/"$3".json\n')
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))

    def take(*more):
        code = queue.main(["--data", str(tmp_path / "data"), "--out", str(out), *more])
        said = capsys.readouterr()
        return code, sorted(path.stem for path in out.iterdir()), said

    return take


def test_a_failed_run_leaves_the_others_their_turn_and_is_told_at_the_end(take):
    code, done, said = take()
    assert code == 1
    assert done == ["tiny-disjoint-good-seed0-fold1", "tiny-loo-good-seed0"]
    assert "[1/3] tiny-loo-good-seed0: done" in said.out
    assert "failed: tiny-loo-bad-seed0" in said.err


def test_what_has_a_json_is_not_run_again(take):
    take()
    _, _, said = take()
    assert "[1/1] tiny-loo-bad-seed0" in said.out


def test_the_list_tells_what_is_done_and_what_remains_and_starts_nothing(take):
    take("--only", "disjoint")
    code, done, said = take("--list")
    assert code == 0
    assert said.out.splitlines() == [
        "to do tiny-loo-good-seed0", "to do tiny-loo-bad-seed0", "done  tiny-disjoint-good-seed0-fold1", "1 of 3 done"
    ]  # fmt: skip
    assert len(done) == 1


def test_an_interrupted_run_ends_the_queue(take, monkeypatch):
    monkeypatch.setattr(queue, "plan", lambda: [Planned("tiny", "loo", "stop"), *RUNS])
    code, done, said = take()
    assert code == 130
    assert not done
    assert "goes on from here" in said.err


def test_two_at_once_are_refused(take, tmp_path):
    with queue._alone():
        code, done, said = take()
    assert code == 2
    assert not done
    assert "another `make quality` is at work" in said.err


def test_data_sets_that_are_not_there_are_named(take, tmp_path):
    code, _, said = take("--data", str(tmp_path / "nowhere"))
    assert code == 2
    assert "has no folder tiny; say where: DATA=path" in said.err


def test_arguments_of_a_run_are_those_of_the_command():
    planned = Planned("ml1m", "disjoint", "pinrec", 2, 0)
    assert planned.arguments(Path("data")) == [
        "--data", "data/ml1m", "--protocol", "disjoint", "--model", "pinrec", "--seed", "2", "--fold", "0",
        "--folds", "10", "--all-engage",
    ]  # fmt: skip


def test_budgets_have_a_command_and_a_folder_of_their_own():
    planned = Planned("kuairand_pure", "disjoint", "budgets", 0, 3)
    assert planned.module == "benchmarks.quality.budgets"
    assert planned.file == Path("budgets", "kuairand_pure-disjoint-budgets-seed0-fold3.json")
    assert planned.arguments(Path("data")) == ["--data", "data/kuairand_pure", "--seed", "0", "--fold", "3"]
    model = Planned("ml1m", "loo", "pinrec")
    assert (model.module, model.file) == ("benchmarks.quality", Path("ml1m-loo-pinrec-seed0.json"))


def test_what_is_split_by_time_has_a_command_and_a_folder_and_is_planned():
    of_log, of_town = Planned("kuairand_pure", BY_TIME, "kept"), Planned(TOWN, BY_TIME, "cold")
    assert (of_log.module, of_town.module) == ("benchmarks.quality.kept", "benchmarks.quality.cold")
    assert of_log.arguments(Path("data")) == ["--data", "data/kuairand_pure", "--seed", "0"]
    assert of_town.arguments(Path("data")) == ["--town", "--seed", "0"]
    assert of_town.file == Path("cold", "town-cold-seed0.json")
    recorded = {path.relative_to(RESULTS) for kind in ("cold", "kept") for path in (RESULTS / kind).glob("*.json")}
    assert recorded <= {planned.file for planned in plan()}


def test_the_town_needs_no_folder_of_data(take, monkeypatch, tmp_path):
    monkeypatch.setattr(queue, "plan", lambda: [Planned(TOWN, BY_TIME, "cold")])
    code, done, said = take("--data", str(tmp_path / "nowhere"))
    assert code == 0
    assert done == ["town-cold-seed0"]
    assert "[1/1] town-cold-seed0: done" in said.out
