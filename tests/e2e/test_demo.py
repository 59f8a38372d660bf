"""`pinrec demo` as a user runs it: a process of its own, everything real, on a path with a space in it."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml

PROJECT = Path(__file__).parents[2]
PINREC = Path(sys.executable).parent / "pinrec"
START_S = 300.0

pytestmark = [pytest.mark.broker, pytest.mark.serve, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def deploy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """deploy/local.yaml, but for free ports, its own state folder and a model that is trained quickly."""
    folder = tmp_path_factory.mktemp("a state")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = yaml.safe_load((PROJECT / "deploy" / "local.yaml").read_text())
    config["http_options"]["port"] = port
    config["applications"][0]["args"] = {
        "state": {"root": str(folder / "state")},
        "kafka": {"local_port": 0, "partitions": 4},
        "training": {"initial_steps": 60},
    }
    path = folder / "deploy.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def run_demo(deploy: Path, *options: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [PINREC, "demo", "--deploy", deploy, "--interval", "5", *options],
        capture_output=True, text=True, timeout=START_S + 200, check=False, env=_environment(),
    )  # fmt: skip


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}


def assert_loop_closed(done: "subprocess.CompletedProcess[str]", report_file: Path) -> dict:
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    report = json.loads(report_file.read_text())
    assert report["ok"]
    assert report["events"]["published"] > 0
    assert report["recommendations"]["received"] > 0
    assert report["recommendations"]["freshness_ms"]["p50"] > 0
    assert report["http"]["answered"] > 0
    assert report["http"]["failed"] == 0
    assert len(report["models"]["answers_by_version"]) >= 2
    assert report["models"]["trained_on_live_events"]
    return report


def test_the_loop_closes_and_a_second_demo_starts_where_the_first_ended(deploy: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    report = assert_loop_closed(run_demo(deploy, "--for", "35", "--json", str(out)), out)
    assert report["peak_memory_gib"] < 6
    last = max(report["models"]["answers_by_version"])

    bystander = subprocess.Popen(["sleep", "600"])
    log = tmp_path / "second.log"
    with log.open("w") as output:
        second = subprocess.Popen(
            [PINREC, "demo", "--deploy", deploy], stdout=output, stderr=subprocess.STDOUT, env=_environment(),
            start_new_session=True,
        )  # fmt: skip
    try:
        deadline = time.monotonic() + START_S
        while "HTTP answers" not in log.read_text():
            assert second.poll() is None, log.read_text()[-3000:]
            assert time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.2)
        said = log.read_text()
        assert "past events" not in said  # what the first run published is still there
        first_line = next(line for line in said.splitlines() if "HTTP answers" in line)
        assert first_line.rsplit("model ", 1)[1].strip() >= last  # and so is its model
        children = psutil.Process(second.pid).children(recursive=True)
        assert len(children) > 5
        haproxy, *_ = (child for child in children if child.name() == "haproxy")
        folder = Path(haproxy.cmdline()[haproxy.cmdline().index("-f") + 1]).parents[1]
        assert folder.is_dir()
        second.send_signal(signal.SIGINT)
        assert second.wait(timeout=90) == 0, log.read_text()[-3000:]
        _, alive = psutil.wait_procs(children, timeout=20)
        assert not alive
        assert not folder.exists()
        assert bystander.poll() is None
    finally:
        second.kill()
        bystander.kill()
        bystander.wait()


def test_the_loop_closes_on_a_log_of_the_users_own(deploy: Path, tmp_path: Path) -> None:
    rng = random.Random(0)
    path = tmp_path / "own log.csv"
    lines = ["who,what,action,surface,when"]
    for i in range(6_000):
        user = rng.randrange(80)
        lines.append(
            f"u{user},i{(user % 8) * 12 + rng.randrange(12)},{rng.choice(['view', 'buy'])},web,{1_600_000_000 + i * 60}"
        )
    path.write_text("\n".join(lines) + "\n")
    out = tmp_path / "out.json"
    renames = [part for pair in ("who=user_id", "what=item_id", "when=timestamp") for part in ("--columns", pair)]
    options = ["--events", str(path), *renames, "--rate", "30", "--for", "20", "--json", str(out)]
    assert_loop_closed(run_demo(deploy, *options), out)
