"""The Trainer deployment: streaming.trainer.Trainer in a thread, out of the way of serving."""

import dataclasses
import logging
import os
import threading
from typing import Any

import torch
from ray import serve

from serving.config import AppSettings
from streaming.trainer import Trainer

log = logging.getLogger(__name__)

_NICENESS = 10


@serve.deployment(name="Trainer")
class TrainerDeployment:
    """Runs the periodic trainer. Deploy one."""

    def __init__(self, settings: AppSettings) -> None:
        os.nice(_NICENESS)
        torch.set_num_threads(settings.training.threads)
        self._crashed: str | None = None
        self._stop = threading.Event()
        self._trainer = Trainer(
            state=settings.state,
            kafka=settings.kafka,
            vocabulary=settings.vocabulary,
            model=settings.model,
            training=settings.training,
            generation=settings.generation,
            trainer=settings.trainer,
            pinned=settings.pinned_version,
        )
        if settings.trainer.enabled:
            threading.Thread(target=self._run, name="trainer", daemon=True).start()

    async def status(self) -> dict[str, Any]:
        """How training stands."""
        status = self._trainer.status()
        troubles = [trouble for trouble in (self._crashed, status.error) if trouble]
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
        try:
            self._trainer.run(self._stop)
        except Exception as error:
            log.exception("the trainer crashed")
            self._crashed = f"{type(error).__name__}: {error}"
