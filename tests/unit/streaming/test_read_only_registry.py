"""A registry that the trainer may read and not write, by the file system's own refusal.

The superuser writes wherever it likes: there, the trainer's process gives that right away.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pinrec.registry import Registry
from streaming.config import StateSettings
from tests.archived_log import ArchivedLog
from tests.small_trainer import checkpoint, trainer, without_kafka

ROOT = Path(__file__).parents[3]
READ, WRITTEN = 0o555, 0o755

ROUNDS = f"""
import sys
from pathlib import Path
from pinrec.registry import Registry
from pinrec.versions import RegistryError
from streaming.config import StateSettings
from tests.archived_log import ArchivedLog
from tests.small_trainer import trainer, without_kafka

without_kafka()
state = StateSettings(root=Path(sys.argv[1]))
log = ArchivedLog(state)
log.add(60)
training = trainer(state)
print(training.round())
log.add(40)
folders = [state.registry, *(path for path in state.registry.rglob("*") if path.is_dir())]
for folder in folders:
    folder.chmod({READ})
try:
    print(training.round())
except RegistryError as error:
    print("told:", error)
registry = Registry(state.registry)
print(registry.load(registry.current()).version, "serves")
for folder in folders:
    folder.chmod({WRITTEN})
print(training.round())
"""


def bound_by_modes() -> list[str]:
    """What a command must begin with to be refused what a folder's mode refuses."""
    if os.geteuid():
        return []
    if not (setpriv := shutil.which("setpriv")):
        pytest.skip("the superuser may write everywhere, and setpriv, which takes that right away, is not here")
    return [setpriv, "--bounding-set=-dac_override", "--inh-caps=-dac_override"]


def test_a_registry_that_cannot_be_written_costs_nothing_of_what_was_learnt_and_what_serves(tmp_path, monkeypatch):
    root = tmp_path / "refused"
    command = [*bound_by_modes(), sys.executable, "-c", ROUNDS, str(root)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    first, told, serves, last = done.stdout.splitlines()
    assert (first, serves, last) == ("v000001", "v000001 serves", "v000002")
    assert told.startswith("told:")
    assert "(Permission denied); let this process write there, or give the registry another place" in told

    without_kafka(monkeypatch.setattr)
    state = StateSettings(root=tmp_path / "written")
    log = ArchivedLog(state)
    log.add(60)
    training = trainer(state)
    training.round()
    log.add(40)
    assert training.round() == Registry(state.registry).current() == "v000002"
    one, other = checkpoint(StateSettings(root=root)), checkpoint(state)
    assert one.keys() == other.keys()
    assert all(torch.equal(value, other[name]) for name, value in one.items())
