"""A measured process, seen from the measure: see `child` for its other end."""

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from benchmarks.result import ROOT, BenchmarkError

_KILLED: Final = -9


@dataclass(frozen=True)
class Pass:
    """Some steps in a row: predictions learnt from, and real events encoded (as often as they are)."""

    seconds: float
    steps: int
    predictions: float
    events: float

    @property
    def predictions_per_s(self) -> float:
        """Predictions learnt from in a second."""
        return self.predictions / self.seconds


class Side:
    """One process, ready to train.

    Args:
        name: what messages call it, and its log in `folder`.
        command: interpreter and module.
        job: what the module's `prepare` reads.

    Attributes:
        facts: what `prepare` told.

    Raises:
        BenchmarkError: it ended instead of answering; also from `train`.
    """

    def __init__(self, name: str, command: list[str], job: dict[str, Any], folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.name, self._log = name, folder / f"{name}.log"
        # It works below `folder`, as RecBole leaves files where it runs, and without a GPU: both sides on the CPU.
        environment = os.environ | {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                command, cwd=folder, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
                text=True,
            )  # fmt: skip
        try:
            self.facts: dict[str, float] = self._ask(job)
        except BaseException:
            self.stop()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def train(self, what: str, steps: int) -> Pass:
        """Train so many steps."""
        return Pass(**self._ask({"train": what, "steps": steps}))

    def stop(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()

    def _ask(self, content: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(content) + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        if not answer:
            code = self._process.wait()
            told = [line for line in self._log.read_text(errors="replace").splitlines() if line.strip()]
            why = (
                "killed, as it would be for want of memory" if code == _KILLED else (told or [f"exit code {code}"])[-1]
            )
            raise BenchmarkError(f"{self.name} ended before its time: {why}; see {self._log}")
        found: dict[str, Any] = json.loads(answer)
        return found
