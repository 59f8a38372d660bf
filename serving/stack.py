"""Everything one machine runs: the broker (if none is given), the topics, Ray and the application."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

from serving.cluster import DeployFile, LocalCluster, require_free_port
from serving.terminal import stop_on_sigterm
from serving.tokens import ensure_token, read_token
from streaming.broker import LocalBroker
from streaming.topics import create_topics

Progress = Callable[[str, int, int], None]
"""Called with (what is done, how much is done, of how much; 0 of 0 where that is not known)."""


class Stack:
    """Starts what a deploy file describes, in order, and stops exactly what it started.

    Args:
        file: the deploy file; where it names no Kafka, a local broker is started and put in.
        progress: told of each step.
    """

    def __init__(self, file: DeployFile, progress: Progress = lambda *_: None) -> None:
        self.file = file
        root = file.settings.state.root.resolve()
        file.override(state={"root": str(root)})
        self._progress = progress
        self._broker: LocalBroker | None = None
        self._cluster = LocalCluster(root)

    @property
    def root(self) -> Path:
        """The state folder."""
        return self.file.settings.state.root

    @property
    def token(self) -> str | None:
        """The admin token."""
        return read_token(self.file.settings)

    def start(self, then: Callable[[], None] = lambda: None) -> None:
        """Start Kafka, if none is named, create the topics, and start Ray meanwhile.

        Args:
            then: what needs Kafka and not Ray; done as soon as the topics are there.

        Raises:
            DeployError: the port of HTTP or of Kafka is taken; nothing was started.
            KafkaUnreachableError: the named Kafka does not answer; nothing was started.
            BrokerError: the local one did not start.
        """
        require_free_port(*self.file.http, "http_options.port")
        kafka = self.file.settings.kafka
        if kafka.bootstrap is not None:
            create_topics(kafka)
        else:
            require_free_port("127.0.0.1", kafka.local_port, "kafka.local_port")
        with ThreadPoolExecutor(1) as other:
            rest = other.submit(self._start_kafka, then)
            # In this thread: Ray's processes end with the thread that started them.
            self._progress("Ray", 0, 0)
            self._cluster.start()
            stop_on_sigterm()  # ray.init has put its own handler there, which ends the process at once
            self._progress("Ray", 1, 1)
            rest.result()

    def _start_kafka(self, then: Callable[[], None]) -> None:
        if self.file.settings.kafka.bootstrap is None:
            self._progress("Kafka broker", 0, 0)
            self._broker = LocalBroker(self.root / "kafka", port=self.file.settings.kafka.local_port)
            self._broker.start(lambda done, total: self._progress("Kafka's jars (once)", done, total))
            self.file.override(kafka={"bootstrap": self._broker.bootstrap})
            create_topics(self.file.settings.kafka)
            self._progress("Kafka broker", 1, 1)
        then()

    def deploy(self) -> None:
        """Deploy the application.

        Raises:
            DeployError: the application did not come up.
        """
        ensure_token(self.file.settings)
        self._cluster.deploy(self.file, waiting=lambda text: self._progress(f"application: {text}", 0, 0))
        self._progress("application", 1, 1)

    def redeploy(self) -> bool:
        """Deploy into the cluster that already serves this state folder; False if there is none.

        Raises:
            DeployError: the application did not come up.
        """
        kafka = self._cluster.attach()
        if kafka is None:
            return False
        if self.file.settings.kafka.bootstrap is None:
            self.file.override(kafka={"bootstrap": kafka})
        self._cluster.deploy(self.file, waiting=lambda text: self._progress(f"application: {text}", 0, 0))
        self._progress("application", 1, 1)
        return True

    def stop(self) -> None:
        """Stop the application, Ray and the broker: what this object started, and nothing else."""
        self._progress("stopping", 0, 0)
        try:
            self._cluster.stop()
        finally:
            if self._broker is not None:
                self._broker.stop()
                self._broker = None
        self._progress("stopping", 1, 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
