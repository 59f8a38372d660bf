"""The Trainer deployment: streaming.trainer.Trainer in a thread, out of the way of serving."""

import dataclasses
import logging
import os
import threading
from typing import TYPE_CHECKING, Any

from ray import serve

from serving.config import AppSettings
from serving.logs import log_with_serve
from streaming.process import keep_freed_memory
from streaming.trainer_status import TrainerStatus

if TYPE_CHECKING:
    from streaming.trainer import Trainer

log = logging.getLogger(__name__)

_KEPT_BYTES = 256 << 20


@serve.deployment(name="Trainer")
class TrainerDeployment:
    """Runs the periodic trainer. Deploy one."""

    def __init__(self, settings: AppSettings) -> None:
        log_with_serve()
        self._settings = settings
        self._crashed: str | None = None
        self._trainer: Trainer | None = None
        self._stop = threading.Event()
        if settings.trainer.enabled:
            threading.Thread(target=self._run, name="trainer", daemon=True).start()

    async def status(self) -> dict[str, Any]:
        """How training stands."""
        status = self._trainer.status() if self._trainer else TrainerStatus()
        problems = (self._crashed, status.error, status.gap, status.watch_trouble)
        troubles = [trouble for trouble in problems if trouble]
        return {"pid": os.getpid(), "troubles": troubles, **dataclasses.asdict(status)}

    def check_health(self) -> None:
        """Serve restarts a trainer that crashed.

        Raises:
            RuntimeError: it crashed.
        """
        if self._crashed:
            raise RuntimeError(self._crashed)

    def __del__(self) -> None:
        self._stop.set()

    def _run(self) -> None:
        # On Linux a thread has a niceness of its own, which the threads it starts inherit: training gives way, the
        # replica's answers to Serve do not. Torch is imported here, so that the application need not wait for it.
        os.nice(self._settings.trainer.niceness)
        keep_freed_memory(_KEPT_BYTES)
        try:
            import torch

            from serving.training import trainer_of

            torch.set_num_threads(self._settings.training.threads)
            self._trainer = trainer_of(self._settings)
            self._trainer.run(self._stop)
        except Exception as error:
            log.exception("the trainer crashed")
            self._crashed = f"{type(error).__name__}: {error}"
