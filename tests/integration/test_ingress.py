"""HAProxy ends with what started it, whatever happens to that."""

import signal
import socket
import subprocess
import sys

import psutil
import pytest

from tests.eventually import eventually

pytestmark = [pytest.mark.serve, pytest.mark.timeout(180)]

WITHOUT_AN_APPLICATION = """
import sys
from pathlib import Path

from serving.cluster import LocalCluster

LocalCluster(Path(sys.argv[1])).start()
from ray.serve._private.api import serve_start

serve_start(http_options={"host": "127.0.0.1", "port": int(sys.argv[2])}, proxy_location="EveryNode")
print("it runs", flush=True)
sys.stdin.read()
"""


def test_no_haproxy_is_left_when_the_command_is_killed(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = subprocess.Popen(
        [sys.executable, "-c", WITHOUT_AN_APPLICATION, tmp_path, str(port)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    children = []
    try:
        assert command.stdout.readline() == "it runs\n"
        children = psutil.Process(command.pid).children(recursive=True)
        haproxy = next(child for child in children if child.name() == "haproxy")
        config = haproxy.cmdline()[haproxy.cmdline().index("-f") + 1]
        command.send_signal(signal.SIGKILL)
        # Whoever their parent is now, and one that has replaced another meanwhile.
        eventually(lambda: not any(config in (p.info["cmdline"] or ()) for p in psutil.process_iter(["cmdline"])), 60)
    finally:
        command.kill()
        command.communicate()
        for child in children:
            if child.is_running():
                child.kill()
