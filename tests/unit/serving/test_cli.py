"""The command line: every fault a user can mend is one sentence on stderr and exit code 2."""

import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import typer.main

from serving.cli import app, main

CLOSED = "127.0.0.1:1"
DEPLOY = Path(__file__).parents[3] / "deploy" / "local.yaml"


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        yield holder.getsockname()[1]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "log.csv"
    rows = "\n".join(f"u{i % 3},i{i},click,home,{1_700_000_000 + i}" for i in range(10))
    path.write_text(f"user_id,item_id,action,surface,timestamp\n{rows}\n")
    return path


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(lambda: app(list(arguments)))
    return int(ended.value.code or 0)


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What a refused command says; checks that it is one sentence and that the exit code is 2."""
    assert run(*arguments) == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith("pinrec: ")
    assert "\n" not in said
    assert "Traceback" not in said
    return said


def commands() -> dict[str, click.Command]:
    def walk(command: click.Command, name: str) -> Iterator[tuple[str, click.Command]]:
        subcommands = getattr(command, "commands", None)
        if subcommands is None:
            yield name, command
        for child, subcommand in (subcommands or {}).items():
            yield from walk(subcommand, f"{name} {child}".strip())

    return dict(walk(typer.main.get_command(app), ""))


@pytest.mark.parametrize("name", commands())
def test_help_of_every_command_has_an_example(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*name.split(), "--help") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert f"Example: pinrec {name}" in re.sub(r"[│╭╮╰╯─]", "", said)


def test_missing_deploy_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert "nowhere.yaml: no such deploy file" in refusal(capsys, "up", "nowhere.yaml")


def test_wrong_setting_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = tmp_path / "deploy.yaml"
    wrong.write_text(DEPLOY.read_text().replace("interval_s: 60", "interval_s: -1"))
    assert "args.trainer.interval_s" in refusal(capsys, "up", str(wrong))


def test_misspelt_setting_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = tmp_path / "deploy.yaml"
    wrong.write_text(DEPLOY.read_text().replace("interval_s: 60", "intervall_s: 60"))
    assert "args.trainer.intervall_s" in refusal(capsys, "up", str(wrong))


def test_http_port_in_use(taken_port: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "deploy.yaml"
    file.write_text(DEPLOY.read_text().replace("port: 8000", f"port: {taken_port}").replace(".pinrec", str(tmp_path)))
    said = refusal(capsys, "up", str(file))
    assert f"port {taken_port}" in said
    assert "http_options.port" in said


def test_broker_port_in_use(taken_port: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = refusal(capsys, "broker", "--port", str(taken_port), "--folder", str(tmp_path))
    assert f"port {taken_port}" in said


def test_kafka_not_reachable_at_start(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "deploy.yaml"
    text = DEPLOY.read_text().replace("bootstrap: null", f"bootstrap: {CLOSED}").replace("port: 8000", "port: 0")
    file.write_text(text.replace(".pinrec", str(tmp_path)))
    said = refusal(capsys, "up", str(file))
    assert CLOSED in said
    assert "kafka.bootstrap" in said


def test_replay_without_kafka(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert CLOSED in refusal(capsys, "replay", str(log), "--bootstrap", CLOSED, "--deploy", str(DEPLOY))


def test_service_not_reachable(capsys: pytest.CaptureFixture[str]) -> None:
    assert "pinrec up" in refusal(capsys, "recommend", "u1", "--url", f"http://{CLOSED}")
    assert "pinrec up" in refusal(capsys, "status", "--url", f"http://{CLOSED}")


def test_unknown_log_and_column(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "nowhere.csv" in refusal(capsys, "events", "validate", "nowhere.csv")
    assert "uid" in refusal(capsys, "events", "validate", str(log), "--columns", "uid=user_id")
    assert "name=value" in refusal(capsys, "events", "validate", str(log), "--columns", "uid")


def test_validate_counts_and_names_what_is_wrong(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(lambda: app(["events", "validate", str(log)], standalone_mode=False))
    assert "10" in capsys.readouterr().out
    log.write_text(log.read_text() + "u1,i1,click,home,never\n")
    assert run("events", "validate", str(log)) == 2
    said = capsys.readouterr().err
    assert "line 12" in said
    assert "timestamp" in said


def test_wrong_shares(capsys: pytest.CaptureFixture[str]) -> None:
    assert "not a number" in refusal(capsys, "recommend", "u1", "--outcome", "save=much")


def test_k_that_is_not_positive_is_refused_before_anything_is_sent(capsys: pytest.CaptureFixture[str]) -> None:
    assert "k: " in refusal(capsys, "recommend", "u1", "-k", "0", "--url", f"http://{CLOSED}")


def test_schemas_describe_the_messages(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("schema", "event") == 0
    schema = json.loads(capsys.readouterr().out)
    assert {"user_id", "item_id", "action", "surface", "timestamp"} <= set(schema["properties"])
    assert run("schema") == 0
    assert {"event", "item", "recommendation", "request", "settings"} == set(json.loads(capsys.readouterr().out))


def test_training_without_events_says_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "deploy.yaml"
    text = DEPLOY.read_text().replace("bootstrap: null", f"bootstrap: {CLOSED}")
    file.write_text(text.replace(".pinrec", str(tmp_path / "state")))
    assert "trainer.min_events" in refusal(capsys, "train", str(file))
