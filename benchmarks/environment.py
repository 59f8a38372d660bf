"""Virtual environments of what PinRec is compared with: pinned packages of their own, and the project's torch."""

import subprocess
import sys
import sysconfig
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from benchmarks.result import BenchmarkError
from serving.stack import Progress

_STAMP: Final = "made-of.txt"


def environment_python(
    folder: Path, requirements: Path, whose: str, imported: str, megabytes: int, progress: Progress
) -> Path:
    """The interpreter of the environment in `folder`, which is made anew where it is not what is required now.

    Behind its own packages it looks into the project's, for torch and whatever else it does not have.

    Args:
        requirements: pinned; installed without what they depend on.
        whose: what messages call it.
        imported: a module that must be there afterwards.
        megabytes: of disk that it takes, for messages.

    Raises:
        BenchmarkError: it cannot be made.
    """
    python, stamp, wanted = folder / "bin" / "python", folder / _STAMP, _made_of(requirements)
    if stamp.exists() and stamp.read_text() == wanted:
        return python
    text = f"{whose} environment"
    progress(text, 0, 0)
    install = ["install", "--no-deps", "--only-binary=:all:", "--quiet", "--disable-pip-version-check"]
    try:
        _run([sys.executable, "-m", "venv", "--clear", str(folder)], folder)
        _run([str(python), "-m", "pip", *install, "--requirement", str(requirements)], folder)
        packages = Path(sysconfig.get_path("purelib", "venv", {"base": str(folder)}))
        (packages / "packages-of-the-project.pth").write_text(f"{_project_packages()}\n")
        _run([str(python), "-W", "ignore", "-c", f"import {imported}"], folder)
    except OSError as error:
        raise BenchmarkError(
            f"{text} could not be made in {folder}: {error}; it needs the package index that pip is set up for and "
            f"some {megabytes} MB of disk, and the same command tries again"
        ) from None
    stamp.write_text(wanted)
    progress(text, 1, 1)
    return python


def _made_of(requirements: Path) -> str:
    """Everything that decides what is in it."""
    return f"{requirements.read_text()}\nPython {sys.version}\ntorch {version('torch')} of {_project_packages()}\n"


def _project_packages() -> Path:
    found = find_spec("torch")
    assert found is not None
    assert found.origin is not None
    return Path(found.origin).parent.parent


def _run(command: list[str], folder: Path) -> None:
    """Run a step of making the environment in `folder`.

    Raises:
        OSError: it failed, with its last line.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        told = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        raise OSError(told[-1] if told else f"{command[0]} ended with {done.returncode}")
