"""The running application that P1, P4 and P6c share: the stack of deploy/local.yaml on free ports, with a model."""

import socket
import time
from pathlib import Path
from typing import Final

from benchmarks.result import ROOT, BenchmarkError
from serving.client import ClientError, PinRecClient
from serving.cluster import APP, DeployFile
from serving.config import AppSettings
from serving.demo import Demo
from serving.demo_sources import TownSource
from serving.stack import Progress, Stack
from streaming.simulator import TownConfig

_NEVER_S: Final = 1e6
_PATIENCE_S: Final = 60.0
_NARROWER: Final = 4
_FULL: Final = TownConfig(inhabitants=500, items=2_000, past_events=20_000)
_QUICK: Final = TownConfig(inhabitants=100, items=200, past_events=3_000)


class Application:
    """Broker, town's past, Ray and a first model; no second model is trained while it is measured, unless asked for.

    Args:
        root: state folder, empty.
        quick: a small town and hardly a model.
        progress: told of each step.
        town: instead of the usual ones.
        interval_s: of the trainer.
    """

    def __init__(
        self, root: Path, quick: bool, progress: Progress, town: TownConfig | None = None, interval_s: float = _NEVER_S
    ) -> None:
        self.town = town or (_QUICK if quick else _FULL)
        self._progress = progress
        file = DeployFile.read(ROOT / "deploy" / "local.yaml")
        file.config.setdefault("http_options", {})["port"] = free_port()
        file.override(
            state={"root": str(root)},
            kafka={"bootstrap": None, "local_port": 0},
            trainer={"interval_s": interval_s},
            training={"initial_steps": 20 if quick else 150},
        )
        self._stack = Stack(file, progress)
        self._started = time.monotonic()

    @property
    def settings(self) -> AppSettings:
        """What the application was told."""
        return self._stack.file.settings

    @property
    def http(self) -> tuple[str, int]:
        """(host, port) of the API."""
        return self._stack.file.http

    @property
    def url(self) -> str:
        """Of the API."""
        return self._stack.file.url

    def start(self) -> None:
        """Return when a model is live and no event waits.

        Raises:
            DemoError, DeployError, BrokerError, BenchmarkError: it did not come up.
        """
        self._stack.root.mkdir(parents=True, exist_ok=True)
        source = TownSource(1.0, self._stack.root, self.town)
        Demo(self._stack, source, self._progress).start()
        # Of whoever has done nothing yet nothing is known: a list of popular items costs less than a generated one.
        self.user_ids = sorted({event.user_id for event in source.past()[1]})
        items = source.items()
        self.item_ids = [item.item_id for item in items]
        topics: dict[str, list[str]] = {}
        for item in items:
            topics.setdefault(item.categories[0], []).append(item.item_id)
        # Narrower ones: with a dozen, all users' lists would be made of the same few hundred items.
        self.topics = [of_topic[at::_NARROWER] for of_topic in topics.values() for at in range(_NARROWER)]
        self.await_idle()
        self.start_seconds = time.monotonic() - self._started

    def scale(self, gateways: int, recommenders: int = 1) -> None:
        """Deploy it again with so many replicas; returns when all of them answer.

        Raises:
            DeployError: they did not come up.
            BenchmarkError: they do not answer.
        """
        (application,) = (a for a in self._stack.file.config["applications"] if a["name"] == APP)
        replicas = {"Gateway": gateways, "Recommender": recommenders}
        for deployment in application["deployments"]:
            deployment["num_replicas"] = replicas.get(deployment["name"], deployment["num_replicas"])
        self._stack.deploy()
        self.await_idle(gateways, recommenders)

    def stop(self) -> None:
        """Stop all that was started."""
        self._stack.stop()

    def await_idle(self, gateways: int = 1, recommenders: int = 1) -> None:
        """Return when no event waits and so many replicas answer.

        Raises:
            BenchmarkError: one still does.
        """
        deadline = time.monotonic() + _PATIENCE_S
        with PinRecClient(self._stack.file.url) as client:
            while time.monotonic() < deadline:
                try:
                    status = client.status()
                except ClientError as error:
                    problem = str(error)
                else:
                    lag = sum(ingestor["lag"] for ingestor in status.ingestors)
                    waiting = sum(r["waiting_users"] for r in status.recommenders)
                    here = (len(status.gateways), len(status.recommenders))
                    if (
                        status.ingestors
                        and status.ready
                        and not lag
                        and not waiting
                        and here == (gateways, recommenders)
                    ):
                        return
                    problem = f"{lag} events and {waiting} users still wait, {here} Gateways and Recommenders answer"
                time.sleep(0.2)
        raise BenchmarkError(f"the application is not idle after {_PATIENCE_S:g} s: {problem}")


def free_port() -> int:
    """One that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
