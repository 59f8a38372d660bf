"""`pinrec evaluate`: one table from a user's own log, and a sentence for every log that gives none."""

import json
from pathlib import Path

import numpy as np
import pytest

from pinrec.config import ModelConfig
from serving import evaluate as module
from tests.unit.serving.test_cli import refusal, run

HEADER = "user_id,item_id,action,surface,timestamp\n"
QUICK = ("--epochs", "1")


def write(path: Path, rows: list[tuple[str, str, str, str, float]]) -> Path:
    path.write_text(HEADER + "".join(",".join(map(str, row)) + "\n" for row in rows))
    return path


def walks(users: int = 40, events: int = 10, action: str = "click") -> list[tuple[str, str, str, str, float]]:
    """Users who walk through 60 items from a place of their own."""
    rng = np.random.default_rng(0)
    return [
        (f"u{u}", f"i{(start + n) % 60}", action if n % 4 else "save", "home", 1_700_000_000 + 60.0 * n + u)
        for u, start in enumerate(rng.integers(0, 60, users))
        for n in range(events)
    ]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return write(tmp_path / "interactions.csv", walks())


def test_one_table_and_a_json_with_a_row_for_every_model(
    log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.json"
    assert run("evaluate", str(log.parent), *QUICK, "--fold", "1", "--folds", "4", "--json", str(out)) == 0
    said = capsys.readouterr().out
    content = json.loads(out.read_text())
    models = ["Popularity", "SASRec", "PinRec-UC", "PinRec-OC", "PinRec-MT,OC"]
    assert list(content["models"]) == models
    words = [line.split() for line in said.splitlines() if line.strip()]
    rows = {first: figures for first, *figures in words if first in models and figures[0] != "against"}
    for name in models:
        test = content["models"][name]["test"]
        columns = ("hr@10", "ndcg@10", "recall@10", f"equal@{10 * content['embeddings']}", "unordered@10", "diversity")
        assert rows[name] == [f"{test[column]:.4f}" for column in columns]
        assert test["users"] == 10
    assert (content["fold"], content["folds"]) == (1, 4)
    assert content["best_baseline"] in models[:2]
    assert " ".join(content["conclusion"].split()) in " ".join(said.split())


def test_leaving_one_out_compares_by_the_one_item_that_is_left(
    log: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.json"
    assert run("evaluate", str(log), *QUICK, "--protocol", "loo", "--max-users", "7", "--json", str(out)) == 0
    content = json.loads(out.read_text())
    assert content["metric"] == "ndcg@10"
    assert content["models"]["SASRec"]["test"]["users"] == content["models"]["SASRec"]["test"]["targets"] == 7
    assert "fold" not in content
    assert "diversity" not in capsys.readouterr().out


ONE_EACH = [(f"u{n}", f"i{n}", "click", "home", 1_700_000_000.0 + n) for n in range(20)]
TIMELESS = [(user, item, action, surface, 1_700_000_000.0) for user, item, action, surface, _ in walks()]
NOTHING_NEW = [(user, "i1", action, surface, time) for user, _, action, surface, time in walks()]


@pytest.mark.parametrize(
    ("rows", "options", "field", "remedy"),
    [
        (ONE_EACH, (), "no user has two events", "bring a longer log"),
        (TIMELESS, (), "timestamp: no user's events differ in time", "check that column"),
        (NOTHING_NEW, (), "none of the", "bring a longer log, or declare which actions are engaging"),
        (NOTHING_NEW, ("--protocol", "loo"), "no user ends with", "declare which actions are engaging"),
        (walks(3), (), "too few users (3) for 5 folds", "bring a longer log"),
        (walks(), ("--engaging", "applause"), "--engaging applause: the log has no such action", "it has click, save"),
        (walks(), ("--fold", "5"), "fold: ", "must be from 0 to 4, not 5"),
        (walks(action="applause"), ("--deploy", "DEPLOY"), "action: 'applause' is not declared", "args.vocabulary"),
        (walks(), ("--columns", "uid=user_id"), "has no column 'uid'", "it has user_id"),
        (walks(), ("--columns", "action=deed"), "cannot map action to 'deed'", "an event has"),
        (walks(), ("--columns", "uid"), "'uid'", "must have the form name=value"),
        ([], (), "the log holds no event", "declare"),
        ([*walks()[:-1], ("u1", "i1", "click", "home", "never")], (), "line 401, column timestamp", "epoch seconds"),
    ],
)
def test_what_cannot_be_evaluated_is_told_with_the_remedy(
    rows, options, field: str, remedy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = write(tmp_path / "log.csv", rows)
    deploy = Path(__file__).parents[3] / "deploy" / "local.yaml"
    said = refusal(capsys, "evaluate", str(log), *(str(deploy) if word == "DEPLOY" else word for word in options))
    assert field in said
    assert remedy in said


def test_no_such_file_and_no_log_in_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "nowhere.csv: no such file" in refusal(capsys, "evaluate", "nowhere.csv")
    assert "holds no log; name it interactions.csv.gz" in refusal(capsys, "evaluate", str(tmp_path))


def test_a_log_without_engagement_to_train_on_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # By the seed of the folds: only users that are tested or validated on ever click.
    rows = walks(30)
    tested = {f"u{n}" for n in range(30)} - _trained_users(write(tmp_path / "log.csv", rows))
    rows = [(u, i, "click" if u in tested else "view", s, t) for u, i, _, s, t in rows]
    said = refusal(capsys, "evaluate", str(write(tmp_path / "log.csv", rows)))
    assert "action: no engagement is left to train on; bring a longer log" in said


def _trained_users(log: Path) -> set[str]:
    split = module.Question(log, {}).split(ModelConfig())
    return {split.log.events.user_ids[u] for u in np.unique(split.training_events.user)}


def test_an_interruption_ends_it_without_a_traceback(
    log: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "compare", interrupted)
    assert run("evaluate", str(log)) == 130
    assert "Traceback" not in capsys.readouterr().err
