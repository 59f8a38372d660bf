"""Closed-loop HTTP load over kept connections. Runs in a process of its own.

One thread over raw sockets: a request costs it some tens of microseconds of CPU time, a tenth of what it costs
httpx or a thread for each connection, so that on a machine of two cores the load takes little from what it loads.
"""

import random
import re
import selectors
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from benchmarks.result import BenchmarkError

_LENGTH: Final = re.compile(rb"\r\ncontent-length: *(\d+)\r\n", re.IGNORECASE)
_CHUNKED: Final = re.compile(rb"\r\ntransfer-encoding: *chunked\r\n", re.IGNORECASE)
_LAST_CHUNK: Final = b"\r\n0\r\n\r\n"
_SILENT_S: Final = 15.0
_REOPENED: Final = 4
"""Times that each connection may be closed between two answers; the request is sent again, its clock runs on."""


@dataclass(frozen=True)
class HttpLoad:
    """What to ask, and for how long."""

    host: str
    port: int
    path: str
    bodies: Sequence[bytes]
    """JSON; each request sends a random one."""
    connections: int
    seconds: float
    warm_up_s: float
    seed: int = 0


@dataclass
class Answered:
    """What came back after the warm-up."""

    seconds: float
    cpu_share: float
    """CPU time of the load process over wall time; near 1 it would measure itself."""
    last_body: bytes
    requests: int
    """All that were answered, the warm-up's too."""
    latencies: list[float] = field(default_factory=list)
    """Milliseconds from the first byte sent to the last received."""

    @property
    def rate(self) -> float:
        """Answers per second."""
        return len(self.latencies) / self.seconds


@dataclass
class _Connection:
    socket: socket.socket
    request: bytes = b""
    sent_at: float = 0.0
    received: bytearray = field(default_factory=bytearray)


def run(load: HttpLoad) -> Answered:
    """Keep every connection busy, each with one request at a time.

    Raises:
        BenchmarkError: an answer was no 200, or none came for a while.
    """
    rng = random.Random(load.seed)
    requests = [_request(load, body) for body in load.bodies]
    selector = selectors.DefaultSelector()
    latencies: list[float] = []
    body, answers, again = b"", 0, 0
    try:
        for _ in range(load.connections):
            connection = _Connection(_connected(load))
            selector.register(connection.socket, selectors.EVENT_READ, connection)
            _send(connection, rng.choice(requests))
        counted_from = time.perf_counter() + load.warm_up_s
        until = counted_from + load.seconds
        cpu: float | None = None
        while (now := time.perf_counter()) < until:
            if cpu is None and now >= counted_from:
                cpu = time.process_time()
            readable = selector.select(timeout=_SILENT_S)
            if not readable:
                raise BenchmarkError(f"{load.path} was silent for {_SILENT_S:g} s")
            for key, _ in readable:
                connection = key.data
                try:
                    answer = _receive(connection)
                except _ClosedError:
                    again += 1
                    if again > _REOPENED * load.connections:
                        raise BenchmarkError("the server closes connections that are to be kept") from None
                    selector.unregister(connection.socket)
                    connection.socket.close()
                    connection.socket = _connected(load)
                    selector.register(connection.socket, selectors.EVENT_READ, connection)
                    connection.socket.sendall(connection.request)
                    continue
                if answer is None:
                    continue
                now, body = time.perf_counter(), answer
                answers += 1
                if counted_from <= now < until:
                    latencies.append((now - connection.sent_at) * 1e3)
                _send(connection, rng.choice(requests))
        share = (time.process_time() - (cpu or 0.0)) / load.seconds
    finally:
        for key in list(selector.get_map().values()):
            key.data.socket.close()
        selector.close()
    return Answered(load.seconds, share, body, answers, latencies)


class _ClosedError(Exception):
    """A kept connection was closed between two answers, as a proxy does when it takes a new configuration."""


def _connected(load: HttpLoad) -> socket.socket:
    connected = socket.create_connection((load.host, load.port), timeout=_SILENT_S)
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connected


def _request(load: HttpLoad, body: bytes) -> bytes:
    head = (
        f"POST {load.path} HTTP/1.1\r\nHost: {load.host}:{load.port}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def _send(connection: _Connection, request: bytes) -> None:
    connection.received.clear()
    connection.request, connection.sent_at = request, time.perf_counter()
    connection.socket.sendall(request)  # far smaller than a socket's buffer, so it never waits


def _receive(connection: _Connection) -> bytes | None:
    """The body of the answer; None while it is not complete."""
    try:
        part = connection.socket.recv(65_536)
    except ConnectionResetError:
        part = b""
    received = connection.received
    if not part:
        if received:
            raise BenchmarkError("the server closed a connection in the middle of an answer")
        raise _ClosedError
    received += part
    head_ends = received.find(b"\r\n\r\n")
    if head_ends < 0:
        return None
    head, body = received[: head_ends + 2], received[head_ends + 4 :]
    if length := _LENGTH.search(head):
        complete = len(body) >= int(length[1])
    elif _CHUNKED.search(head):
        complete = (b"\r\n" + body).endswith(_LAST_CHUNK)
    else:
        raise BenchmarkError(f"an answer without a length: {head[:200].decode(errors='replace')}")
    if not complete:
        return None
    if not head.startswith(b"HTTP/1.1 200 "):
        status = head.split(b"\r\n", 1)[0].decode(errors="replace")
        raise BenchmarkError(f"{status}: {bytes(body[:300]).decode(errors='replace')}")
    return bytes(body)
