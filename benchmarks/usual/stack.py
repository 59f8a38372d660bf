"""Starts and stops the usual stack on free ports of this machine."""

import json
import os
import shlex
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import psutil

from benchmarks.application import free_port
from benchmarks.result import ROOT, BenchmarkError
from benchmarks.usual.environment import usual_python
from benchmarks.usual.job import Job
from pinrec.config import ModelConfig
from serving.stack import Progress

_START_S: Final = 60.0


class UsualStack:
    """Redis, and uvicorn with so many workers.

    Args:
        work: folder for logs and files of this run; must not exist.
        environment: folder of the virtual environment, which outlives the run.
        workers: processes that answer.
        model: sizes of the SASRec.
        item_ids: the catalogue.

    Raises:
        BenchmarkError: a part does not start.
    """

    def __init__(
        self,
        work: Path,
        environment: Path,
        workers: int,
        model: ModelConfig,
        item_ids: Sequence[str],
        progress: Progress,
    ) -> None:
        self._python = usual_python(environment, progress)
        (work / "ready").mkdir(parents=True)
        self.port, redis_port = free_port(), free_port()
        self._work, self._redis_port = work, redis_port
        job = Job(redis_port, list(item_ids), model.width, model.layers, model.heads, model.history, f"{work}/ready")
        told = job.write(work / "job.json")
        self._environment = os.environ | told | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
        self._stack = ExitStack()
        self._parts: dict[str, psutil.Process] = {}
        redis = f"redis-server --bind 127.0.0.1 --port {redis_port} --save '' --appendonly no"
        server = (
            f"python -W ignore -m uvicorn benchmarks.usual.server:api --workers {workers} --host 127.0.0.1 "
            f"--port {self.port} --no-access-log --log-level warning"
        )
        try:
            self._start("redis", redis)
            self._await("redis", lambda: _answers(redis_port))
            self._start("uvicorn", server)
            # Connections are shared out among the workers that are there when they are opened.
            self._await("uvicorn", lambda: len(list((work / "ready").iterdir())) == workers)
        except BaseException:
            self._stack.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stack.close()

    def fill(self, histories: Mapping[str, Sequence[str]]) -> None:
        """Replace all histories: user -> item ids, oldest first.

        Raises:
            BenchmarkError: Redis did not take them.
        """
        path = self._work / "histories.json"
        path.write_text(json.dumps({user_id: list(item_ids) for user_id, item_ids in histories.items()}))
        done = subprocess.run(
            [str(self._python), "-m", "benchmarks.usual.fill", str(self._redis_port), str(path)],
            env=self._environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise BenchmarkError(f"Redis did not take the histories: {done.stderr.strip().splitlines()[-1]}")

    def cpu_seconds(self) -> dict[str, float]:
        """CPU time of each part so far, its children's included."""
        return {name: sum(map(_cpu, [part, *part.children(recursive=True)])) for name, part in self._parts.items()}

    def _start(self, name: str, command: str) -> None:
        program, *arguments = shlex.split(command)
        with (self._work / f"{name}.log").open("w") as log:
            process = subprocess.Popen(
                [str(self._python.with_name(program)), *arguments],
                cwd=self._work, env=self._environment, stdout=log, stderr=log,
            )  # fmt: skip
        self._parts[name] = psutil.Process(process.pid)
        self._stack.callback(_stop, process)

    def _await(self, name: str, ready: Callable[[], bool]) -> None:
        until = time.monotonic() + _START_S
        while not ready():
            if time.monotonic() > until or self._parts[name].status() == psutil.STATUS_ZOMBIE:
                told = (self._work / f"{name}.log").read_text(errors="replace").strip().splitlines()
                raise BenchmarkError(f"{name} of the usual stack does not start: {(told or ['it says nothing'])[-1]}")
            time.sleep(0.05)


def _answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


def _stop(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        for child in psutil.Process(process.pid).children(recursive=True):
            child.kill()
        process.kill()
        process.wait()
