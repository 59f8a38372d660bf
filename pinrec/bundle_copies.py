"""Copies of an object store's bundles on this machine: files can be mapped, objects cannot.

v000001/   a copy, whole; used last when its folder was touched last
lock       held by who fetches, so that the processes of a machine fetch a version once
"""

import contextlib
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from pinrec.bundle import MANIFEST
from pinrec.versions import VERSION

KEPT: Final = 4
_LOCK: Final = "lock"
_ABANDONED_AFTER_S: Final = 3_600.0


class BundleCopies:
    """A folder of copies that never holds more than a few; those that were not used for longest go first.

    What goes while a process answers from it stays readable to that process: its pages are mapped.

    Args:
        folder: shared by the processes of a machine; made when it is needed.
        kept: copies at most.
    """

    def __init__(self, folder: Path, kept: int = KEPT) -> None:
        self._folder, self._kept = folder, kept

    def fetched(self, version: str, manifest: bytes, fetch: Callable[[Path], None]) -> Path:
        """The folder of a copy.

        Args:
            manifest: what the version says of itself now: a copy that says otherwise is of another registry's life.
            fetch: writes all other files into a folder.

        Raises:
            OSError: it cannot be fetched or written; nothing is left behind.
        """
        copy = self._folder / version
        with self._locked():
            if not _says(copy, manifest):
                aside = Path(tempfile.mkdtemp(prefix=f".{version}.fetching-", dir=self._folder))
                try:
                    fetch(aside)
                    (aside / MANIFEST).write_bytes(manifest)
                    shutil.rmtree(copy, ignore_errors=True)
                    aside.rename(copy)
                finally:
                    shutil.rmtree(aside, ignore_errors=True)
            self._used(copy)
        return copy

    @contextlib.contextmanager
    def written(self, version: str, write: Callable[[Path], object]) -> Iterator[Path]:
        """A version that is made here, for the time it takes to store it elsewhere; afterwards it stays as a copy.

        Args:
            write: makes the folder.

        Raises:
            OSError, BundleError: it cannot be written; nothing is left behind.
        """
        copy = self._folder / version
        with self._locked():
            shutil.rmtree(copy, ignore_errors=True)
            write(copy)
            self._used(copy)
        try:
            yield copy
        except BaseException:
            self.drop(version)
            raise

    def drop(self, version: str) -> None:
        """Let a copy go."""
        shutil.rmtree(self._folder / version, ignore_errors=True)

    def _used(self, copy: Path) -> None:
        """Note that a copy is used, and let go of those that are too many, and of what died while it was made."""
        os.utime(copy)
        found: list[tuple[float, Path]] = []
        for path in self._folder.iterdir():
            with contextlib.suppress(FileNotFoundError):
                at = path.stat().st_mtime
                if VERSION.fullmatch(path.name) and path != copy:
                    found.append((at, path))
                elif path.name.startswith(".v") and at < time.time() - _ABANDONED_AFTER_S:
                    shutil.rmtree(path, ignore_errors=True)
        for _, path in sorted(found, reverse=True)[self._kept - 1 :]:
            shutil.rmtree(path, ignore_errors=True)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / _LOCK).open("wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # let go when the file is closed, by the death of its process too
            yield


def _says(folder: Path, manifest: bytes) -> bool:
    try:
        return (folder / MANIFEST).read_bytes() == manifest
    except FileNotFoundError:
        return False
