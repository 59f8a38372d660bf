"""What training goes on from after a restart: a folder of the trainer's own.

checkpoint.safetensors   the learner and where it stands in the archive, after the last round that ended
round.json               the round that was begun after it, if one was: where its events end
catalogue.safetensors    the catalogue of that round
published.json           the version that was published last or gone back to, and what it was trained on
leader                   locked by the trainer that leads

Each file is written aside and renamed. A round changes the checkpoint at its end or not at all, and what decides
its result is written down before it begins; so a process that is killed at any moment repeats it with the same result.
"""

import fcntl
import logging
import os
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Final, TypeVar

from pydantic import BaseModel, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from pinrec.config import Frozen, ModelConfig
from pinrec.items import CATALOGUE_FILE, Catalogue
from streaming.training_log import Reach, Standing

log = logging.getLogger(__name__)

CHECKPOINT: Final = "checkpoint.safetensors"
ROUND: Final = "round.json"
PUBLISHED: Final = "published.json"
LEADER: Final = "leader"
_ASIDE: Final = ".aside"

M = TypeVar("M", bound=BaseModel)


class Plan(Frozen):
    """A round that was begun: its number, the next offset by partition at which its events end, the model's sizes.

    `items` are the positions of the items topic that its catalogue is as of.
    """

    number: int
    until: dict[int, int]
    config: ModelConfig
    items: dict[int, int] = Field(default_factory=dict)


class Published(Frozen):
    """The version that training last published or went back to.

    Attributes:
        number: the last round of which there is nothing to publish any more.
        reach: what the version was trained on.
        standing: where training stood then; what it withdrew outlives a checkpoint that is lost.
    """

    version: str
    number: int
    reach: Reach = Reach()
    standing: Standing = Standing()


class TrainerFolder:
    """The files, each read and written whole. One trainer at a time: the one that leads.

    Args:
        folder: made by the first write.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self._leader: IO[str] | None = None
        self._catalogue: Catalogue | None = None

    def lead(self) -> bool:
        """Become the one trainer of this folder until the process ends or `resign`; False if another one is."""
        if self._leader is not None:
            return True
        self.folder.mkdir(parents=True, exist_ok=True)
        file = (self.folder / LEADER).open("a+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return False
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        self._leader = file
        return True

    @property
    def leader(self) -> str:
        """Who leads, as it named itself."""
        try:
            return (self.folder / LEADER).read_text() or "a process"
        except OSError:
            return "a process"

    def resign(self) -> None:
        """Let another trainer lead."""
        if self._leader is not None:
            self._leader.close()
            self._leader = None

    def save(self, state: Mapping[str, Tensor]) -> None:
        """Replace the checkpoint.

        Raises:
            OSError: it cannot be written; the old one stands.
        """
        self._replace(CHECKPOINT, lambda aside: save_file(dict(state), aside / CHECKPOINT))

    def load(self) -> dict[str, Tensor] | None:
        """The checkpoint; None before the first one, or where it is damaged."""
        path = self.folder / CHECKPOINT
        try:
            return load_file(path)
        except FileNotFoundError:
            return None
        except SafetensorError as error:
            log.warning("%s cannot be read and is left aside: %s", path, error)
            return None

    def begin(self, plan: Plan, catalogue: Catalogue) -> None:
        """Note what a round will be made of, before it begins.

        Raises:
            OSError: it cannot be written.
        """
        if catalogue is not self._catalogue:
            self._replace(CATALOGUE_FILE, catalogue.save)
            self._catalogue = catalogue
        self._write(ROUND, plan)

    def plan(self, number: int, config: ModelConfig) -> Plan | None:
        """The round of this number, if it was begun for a model of these sizes."""
        plan = self._read(ROUND, Plan)
        return plan if plan is not None and (plan.number, plan.config) == (number, config) else None

    def catalogue(self, config: ModelConfig) -> Catalogue | None:
        """The catalogue of the last round that was begun; None where it was for a model of other sizes."""
        if self._catalogue is None:
            plan = self._read(ROUND, Plan)
            if plan is None or plan.config != config:
                return None
            try:
                self._catalogue = Catalogue.load(self.folder)
            except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
                log.warning("%s cannot be read: %s", self.folder / CATALOGUE_FILE, error)
        return self._catalogue

    def items(self, config: ModelConfig) -> dict[int, int]:
        """The positions of the items topic that `catalogue` is as of."""
        plan = self._read(ROUND, Plan)
        return plan.items if plan is not None and plan.config == config else {}

    def note_published(self, published: Published) -> None:
        """Replace what `published` gives.

        Raises:
            OSError: it cannot be written.
        """
        self._write(PUBLISHED, published)

    def published(self) -> Published | None:
        """What training last published or went back to."""
        return self._read(PUBLISHED, Published)

    def _write(self, name: str, what: BaseModel) -> None:
        self._replace(name, lambda aside: (aside / name).write_text(what.model_dump_json()))

    def _read(self, name: str, kind: type[M]) -> M | None:
        try:
            return kind.model_validate_json((self.folder / name).read_bytes())
        except FileNotFoundError:
            return None
        except (ValidationError, OSError) as error:
            log.warning("%s cannot be read and is left aside: %s", self.folder / name, error)
            return None

    def _replace(self, name: str, write: Callable[[Path], object]) -> None:
        """Let `write` make the file in a folder aside, and put it in its place once it is on the disk."""
        aside = self.folder / _ASIDE
        aside.mkdir(parents=True, exist_ok=True)
        try:
            write(aside)
        except SafetensorError as error:
            raise OSError(str(error)) from error
        _sync(aside / name)
        (aside / name).replace(self.folder / name)
        _sync(self.folder)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
