"""Ray and Serve on this machine: start, deploy a file, deploy it again, stop."""

import contextlib
import json
import logging
import os
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from serving import ingress
from serving.config import AppSettings
from serving.ingress import HAProxy, NoHAProxyError
from streaming.schema import first_problem

log = logging.getLogger(__name__)

APP: str = "pinrec"
_ADDRESS_FILE = "cluster.json"
_DELETE_S = 25.0
_SHUTDOWN_S = 15.0


class DeployError(RuntimeError):
    """A deploy file that cannot be used, or an application that did not come up."""


@dataclass
class DeployFile:
    """A Ray Serve config whose one application is PinRec."""

    config: dict[str, Any]
    settings: AppSettings

    @classmethod
    def read(cls, path: Path) -> "DeployFile":
        """Read and check a deploy file.

        Raises:
            DeployError: naming the file, the setting and the remedy.
        """
        try:
            config = yaml.safe_load(path.read_text())
        except FileNotFoundError:
            raise DeployError(f"{path}: no such deploy file") from None
        except (OSError, yaml.YAMLError) as error:
            raise DeployError(f"{path}: {error}") from None
        try:
            application = next(a for a in config["applications"] if a["name"] == APP)
        except (TypeError, KeyError, StopIteration):
            raise DeployError(f"{path}: applications: one must have the name '{APP}'") from None
        return cls(config, _settings(path, application))

    def override(self, **parts: dict[str, Any]) -> None:
        """Replace single settings by part, such as kafka={"bootstrap": "127.0.0.1:9092"}.

        Raises:
            DeployError: a setting is not valid.
        """
        args = self._application.setdefault("args", {}) or {}
        for part, values in parts.items():
            args[part] = {**(args.get(part) or {}), **values}
        self._application["args"] = args
        self.settings = _settings(Path("overrides"), self._application)

    @property
    def http(self) -> tuple[str, int]:
        """(host, port) of the HTTP API."""
        options = self.config.get("http_options") or {}
        return str(options.get("host", "127.0.0.1")), int(options.get("port", 8000))

    @property
    def url(self) -> str:
        """Where clients on this machine reach the HTTP API."""
        host, port = self.http
        return f"http://{'127.0.0.1' if host == '0.0.0.0' else host}:{port}"

    @property
    def route_prefix(self) -> str:
        """What stands before every path of the HTTP API."""
        return str(self._application.get("route_prefix") or "").rstrip("/")

    @property
    def _application(self) -> dict[str, Any]:
        application: dict[str, Any] = next(a for a in self.config["applications"] if a["name"] == APP)
        return application


def _settings(source: Path, application: dict[str, Any]) -> AppSettings:
    try:
        settings = AppSettings.model_validate(application.get("args") or {})
    except ValidationError as error:
        raise DeployError(f"{source}: args.{first_problem(error)}") from None
    deployments = application.get("deployments") or []
    if not isinstance(deployments, list):
        raise DeployError(f"{source}: deployments: must be a list, one entry for each deployment, not {deployments!r}")
    for deployment in deployments:
        most = deployment.get("max_ongoing_requests") if isinstance(deployment, dict) else None
        if isinstance(most, int) and deployment.get("name") == "Gateway" and most <= settings.serving.most_queries:
            raise DeployError(
                f"{source}: deployments.Gateway.max_ongoing_requests: with {most}, queries would wait where neither "
                "serving.max_queue nor serving.deadline_s ends it; leave it out, or set more than serving.max_queue + "
                f"serving.max_batch, {settings.serving.most_queries}"
            )
    return settings


class LocalCluster:
    """Ray with Serve on this machine, bound to loopback; stopping it stops every process it started.

    Args:
        root: state folder; the running cluster's address is noted there, so that a second
            `pinrec up` deploys into the first.
    """

    def __init__(self, root: Path) -> None:
        self._file = root / _ADDRESS_FILE
        self._started = False
        self._haproxy: HAProxy | None = None

    def start(self) -> None:
        """Start Ray in child processes of this one."""
        # Before ray is imported: it reads them at import.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_SERVE_LOG_TO_STDERR", "0")  # the progress of a start is ours to tell
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        # Without this Ray takes a loopback address for a mistake, and listens on the machine's outward one.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        # Ray's own 15 leaves no room below: a trainer that is to give way would hardly do so.
        os.environ.setdefault("RAY_worker_niceness", "0")
        import ray

        self._haproxy = _haproxy()
        with self._haproxy.told() if self._haproxy else contextlib.nullcontext():
            ray.init(
                address="local",
                namespace="serve",
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                _node_ip_address="127.0.0.1",
            )
        self._started = True

    def attach(self) -> str | None:
        """Connect to the cluster that another process started for this state folder.

        Returns:
            the address of the Kafka that its application uses; None if no cluster runs.
        """
        try:
            noted: dict[str, str] = json.loads(self._file.read_text())
            address, kafka = noted["address"], noted["kafka"]
            host, port = address.rsplit(":", 1)
            # Ray itself would try for minutes.
            socket.create_connection((host, int(port)), timeout=2).close()
        except (OSError, ValueError, KeyError):
            return None
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        import ray

        try:
            ray.init(address=address, namespace="serve", log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, RuntimeError):
            return None
        return kafka

    def deploy(self, file: DeployFile, timeout_s: float = 180.0, waiting: Callable[[str], None] | None = None) -> None:
        """Deploy, or deploy again, and wait until every replica runs.

        Raises:
            DeployError: it did not come up, with Serve's own message.
        """
        from ray.exceptions import RayError
        from ray.serve._private.api import serve_start  # what `serve run FILE` itself calls
        from ray.serve.schema import ServeDeploySchema

        try:
            schema = ServeDeploySchema.model_validate(file.config)
        except ValidationError as error:
            raise DeployError(f"deploy file: {first_problem(error)}") from None
        try:
            client = serve_start(http_options=schema.http_options.model_dump(), proxy_location=schema.proxy_location)
        except (TimeoutError, RayError) as error:
            raise DeployError(f"the HTTP proxy did not start: {str(error).strip().splitlines()[-1]}") from error
        client.deploy_apps(schema)
        if self._started:
            self._note(file)
        self._wait(file, timeout_s, waiting)

    def stop(self) -> None:
        """Stop what `start` started."""
        if self._started:
            self._stop()
        if self._haproxy is not None:
            self._haproxy.remove()
            self._haproxy = None

    def _stop(self) -> None:
        import ray
        from ray import serve

        self._file.unlink(missing_ok=True)
        # Replicas flush and leave the consumer group. Where Ray has died first, as when a signal reached the whole
        # process group, neither call returns for a minute; nothing is lost by not waiting.
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        _within(_DELETE_S, lambda: serve.delete(APP))
        _within(_SHUTDOWN_S, ray.shutdown)

    def _note(self, file: DeployFile) -> None:
        import ray

        noted = {"address": ray.get_runtime_context().gcs_address, "kafka": file.settings.local_kafka.bootstrap}
        self._file.parent.mkdir(parents=True, exist_ok=True)
        self._file.write_text(json.dumps(noted))

    def _wait(self, file: DeployFile, timeout_s: float, waiting: Callable[[str], None] | None) -> None:
        from ray import serve

        deadline = time.monotonic() + timeout_s
        while True:
            app = serve.status().applications.get(APP)
            state = app.status if app else "NOT_STARTED"
            if state == "RUNNING" and _answers(f"{file.url}{file.route_prefix}/healthz"):
                return
            if state in {"DEPLOY_FAILED", "UNHEALTHY"} or time.monotonic() > deadline:
                messages = [d.message for d in app.deployments.values() if d.message] if app else []
                if state == "RUNNING":
                    raise DeployError(f"the application runs, but {file.url} does not answer after {timeout_s:g} s")
                raise DeployError(
                    f"the application is {state} after {timeout_s:g} s at most: "
                    f"{' | '.join([app.message, *messages] if app else messages)[-2000:]}"
                )
            if waiting:
                running = sum(
                    1 for d in (app.deployments.values() if app else ()) if getattr(d, "status", "") == "HEALTHY"
                )
                waiting(f"{running} of {len(app.deployments) if app else 0} deployments run")
            time.sleep(0.1)


def _haproxy() -> HAProxy | None:
    if not ingress.wanted():
        return None
    try:
        return HAProxy()
    except NoHAProxyError as error:
        log.warning("HAProxy is not used (%s): Ray Serve's own proxy answers fewer queries a second", error)
        return None


def _answers(url: str) -> bool:
    """Whether HTTP reaches the application: the proxy learns of a replica some time after it runs."""
    import httpx

    try:
        return httpx.get(url, timeout=5).is_success
    except httpx.TransportError:
        return False


def _within(seconds: float, work: Callable[[], None]) -> None:
    def quietly() -> None:
        with contextlib.suppress(Exception):
            work()

    thread = threading.Thread(target=quietly, daemon=True)
    thread.start()
    thread.join(seconds)


def require_free_port(host: str, port: int, setting: str) -> None:
    """Say at once that a port is taken.

    Raises:
        DeployError: naming the port, the setting and the remedy.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            raise DeployError(f"port {port} of {host} is in use; stop what holds it, or set {setting}") from None
