"""RecBole's own virtual environment: its pinned packages, and the project's torch."""

import subprocess
import sys
import sysconfig
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from benchmarks.result import BenchmarkError
from serving.stack import Progress

REQUIREMENTS: Final = Path(__file__).parent / "requirements.txt"
_STAMP: Final = "made-of.txt"
_TEXT: Final = "RecBole's environment"


def recbole_python(folder: Path, progress: Progress) -> Path:
    """The interpreter of the environment in `folder`, which is made anew where it is not what is required now.

    Behind its own packages it looks into the project's, for torch and what torch needs.

    Raises:
        BenchmarkError: it cannot be made.
    """
    python, stamp, wanted = folder / "bin" / "python", folder / _STAMP, _made_of()
    if stamp.exists() and stamp.read_text() == wanted:
        return python
    progress(_TEXT, 0, 0)
    install = ["install", "--no-deps", "--only-binary=:all:", "--quiet", "--disable-pip-version-check"]
    _run([sys.executable, "-m", "venv", "--clear", str(folder)], folder)
    _run([str(python), "-m", "pip", *install, "--requirement", str(REQUIREMENTS)], folder)
    packages = Path(sysconfig.get_path("purelib", "venv", {"base": str(folder)}))
    (packages / "torch-of-the-project.pth").write_text(f"{_torch_packages()}\n")
    _run([str(python), "-W", "ignore", "-c", "import recbole.trainer"], folder)
    stamp.write_text(wanted)
    progress(_TEXT, 1, 1)
    return python


def recbole_version() -> str:
    """The version that is required."""
    lines = REQUIREMENTS.read_text().splitlines()
    return next(line.partition("==")[2] for line in lines if line.startswith("recbole=="))


def _made_of() -> str:
    """Everything that decides what is in it."""
    return f"{REQUIREMENTS.read_text()}\nPython {sys.version}\ntorch {version('torch')} of {_torch_packages()}\n"


def _torch_packages() -> Path:
    found = find_spec("torch")
    assert found is not None
    assert found.origin is not None
    return Path(found.origin).parent.parent


def _run(command: list[str], folder: Path) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise _failed(folder, str(error)) from None
    if done.returncode:
        told = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        raise _failed(folder, told[-1] if told else f"{command[0]} ended with {done.returncode}")


def _failed(folder: Path, why: str) -> BenchmarkError:
    return BenchmarkError(
        f"RecBole's environment could not be made in {folder}: {why}; it needs the package index that pip is set up "
        "for and some 600 MB of disk, and the same command tries again"
    )
