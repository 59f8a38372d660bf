"""Copies of an object store's bundles on this machine: files can be mapped, objects cannot.

v000001/   a copy, whole; used last when its folder was touched last
.v...      one that is being made, or taken away
lock       held by who fetches or takes away, so that the processes of a machine fetch a version once
"""

import contextlib
import fcntl
import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from pinrec.bundle import MANIFEST
from pinrec.versions import VERSION

KEPT: Final = 4
_LOCK: Final = "lock"
_DROPPED: Final = ".dropped-"
_ABANDONED_AFTER_S: Final = 3_600.0
_IN_USE_S: Final = 300.0
"""A copy that was touched so recently may be in the middle of being uploaded or loaded, as in `registry.LOADING_S`."""


class BundleCopies:
    """A folder of copies that holds a few, and those used in the last minutes; the longest unused go first.

    What goes while a process answers from it stays readable to that process: its pages are mapped.

    Args:
        folder: shared by the processes of a machine; made when it is needed.
        kept: copies at most.
    """

    def __init__(self, folder: Path, kept: int = KEPT) -> None:
        self.folder, self._kept = folder, kept

    def fetched(self, version: str, manifest: bytes, fetch: Callable[[Path], None]) -> Path:
        """The folder of a copy.

        Args:
            manifest: what the version says of itself now: a copy that says otherwise is of another registry's life.
            fetch: writes all other files into a folder.

        Raises:
            OSError: it cannot be fetched or written; nothing is left behind.
        """
        copy = self.folder / version
        with self._locked():
            if not _says(copy, manifest):
                aside = Path(tempfile.mkdtemp(prefix=f".{version}.fetching-", dir=self.folder))
                try:
                    fetch(aside)
                    (aside / MANIFEST).write_bytes(manifest)
                    self._remove(copy)
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
        copy = self.folder / version
        with self._locked():
            self._remove(copy)
            write(copy)
            self._used(copy)
        try:
            yield copy
        except BaseException:
            self.drop(version)
            raise

    @contextlib.contextmanager
    def opened(self, version: str) -> Iterator[int]:
        """The inode of a copy's folder; no other gets that number meanwhile, for the folder is held open.

        Raises:
            FileNotFoundError: there is no copy.
        """
        held = os.open(self.folder / version, os.O_RDONLY | os.O_DIRECTORY)
        try:
            yield os.fstat(held).st_ino
        finally:
            os.close(held)

    def drop(self, version: str, inode: int | None = None) -> None:
        """Let a copy go.

        Args:
            inode: of the folder that is meant (see `opened`): what another process has fetched meanwhile stays.
        """
        copy = self.folder / version
        if not copy.exists():
            return
        with self._locked(), contextlib.suppress(FileNotFoundError):
            if inode is None or copy.stat().st_ino == inode:
                self._remove(copy)

    def _remove(self, copy: Path) -> None:
        """All at once, for who holds the lock: half a copy would look whole, by its manifest."""
        aside = copy.with_name(f".{copy.name}{_DROPPED}{uuid.uuid4().hex}")
        with contextlib.suppress(FileNotFoundError):
            copy.rename(aside)
            shutil.rmtree(aside, ignore_errors=True)

    def _used(self, copy: Path) -> None:
        """Note that a copy is used, and let go of those that are too many, and of what died while it was made."""
        os.utime(copy)
        now = time.time()
        found: list[tuple[float, Path]] = []
        for path in self.folder.iterdir():
            with contextlib.suppress(FileNotFoundError):
                at = path.stat().st_mtime
                if VERSION.fullmatch(path.name) and path != copy:
                    found.append((at, path))
                elif path.name.startswith(".v") and (_DROPPED in path.name or at < now - _ABANDONED_AFTER_S):
                    shutil.rmtree(path, ignore_errors=True)
        for at, path in sorted(found, reverse=True)[self._kept - 1 :]:
            if at < now - _IN_USE_S:
                self._remove(path)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / _LOCK).open("wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # let go when the file is closed, by the death of its process too
            yield


def _says(folder: Path, manifest: bytes) -> bool:
    try:
        return (folder / MANIFEST).read_bytes() == manifest
    except FileNotFoundError:
        return False
