"""Where bundles lie, and small files beside them: a folder, or an object store that fsspec can reach.

v000001/              a bundle; with its manifest.json it exists, without it is half written or half deleted
claims/v000001        taken by exclusive creation, so that no two publishers get the same version
lock                  held by who changes something; a folder's only

An object store has no lock: it should have one writer at a time.
"""

import contextlib
import errno
import fcntl
import hashlib
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem
from torch import Tensor

from pinrec.bundle import MANIFEST, Bundle, BundleError, Manifest
from pinrec.bundle_copies import KEPT, BundleCopies
from pinrec.versions import VERSION, UnknownVersionError, version_number

CLAIMS: Final = "claims"
LOCK: Final = "lock"
ABANDONED_AFTER_S: Final = 3_600.0
T = TypeVar("T")
_REFUSED: Final = (errno.EACCES, errno.EPERM, errno.EROFS)
_ABANDONED: Final = re.compile(r"^\.v\d{6,}\.(writing|deleting)")


class _Files:
    """A file system whose every fault is an OSError: the clients of object stores raise exceptions of their own.

    With a store that cannot be reached, or that refuses a key, the version that serves goes on as with a disk that
    cannot be read.
    """

    def __init__(self, files: Any) -> None:
        self._files = files

    def __getattr__(self, name: str) -> Callable[..., Any]:
        call = getattr(self._files, name)

        def told(*args: Any, **options: Any) -> Any:
            with _as_os_error():
                return call(*args, **options)

        return told


@contextlib.contextmanager
def _as_os_error() -> Iterator[None]:
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        raise OSError(f"{type(error).__name__}: {error}") from error


class BundleStore:
    """Bundles by version, and files by name, on either kind of place.

    Args:
        url: a folder, or an address such as s3://bucket/models (fsspec and its protocol's package).
        cache: folder for copies of a store that is not a folder; default ~/.cache/pinrec.
        copies: so many of them at most.
    """

    def __init__(self, url: str | Path, cache: Path | None = None, copies: int = KEPT) -> None:
        self.url = str(url)
        files: Any
        if isinstance(url, Path) or "://" not in url:
            files, self._root = LocalFileSystem(), str(Path(url).absolute())
        else:
            with _as_os_error():
                files, self._root = url_to_fs(url)
        self._local = isinstance(files, LocalFileSystem)
        self._fs = _Files(files)
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        self._copies = BundleCopies(
            (cache or home / "pinrec") / hashlib.sha256(self.url.encode()).hexdigest()[:16], copies
        )

    def remedy(self, error: OSError) -> str:
        """What to do where a bundle cannot be written."""
        if self._local and error.errno in _REFUSED:
            return "let this process write there"
        if self._local:
            return "free disk space there"
        return f"see that it can be reached and takes writes, and that {self._copies.folder} has free disk space"

    def names(self) -> list[str]:
        """The versions that are there in full, oldest first."""
        return [version for version in self.numbered() if self._is_there(version)]

    def numbered(self, *folder: str) -> list[str]:
        """The versions that something in a folder is named after, oldest first."""
        self._fs.invalidate_cache()
        try:
            listed = self._fs.ls(self._at(*folder), detail=False)
        except FileNotFoundError:
            return []
        names = (path.rstrip("/").rsplit("/", 1)[-1].removesuffix(".json") for path in listed)
        return sorted((name for name in names if VERSION.fullmatch(name)), key=version_number)

    def require(self, version: str) -> None:
        """See that a version is there.

        Raises:
            UnknownVersionError: it is not.
        """
        if not VERSION.fullmatch(version) or not self._is_there(version):
            known = ", ".join(self.names()[-5:]) or "none yet"
            raise UnknownVersionError(f"{version[:64]!r} is not in {self.url}; the newest versions are: {known}")

    def claim(self) -> str:
        """The next version; it is nobody else's from now on."""
        self._fs.makedirs(self._at(CLAIMS), exist_ok=True)
        taken = [version_number(name) for name in self.numbered() + self.numbered(CLAIMS)]
        number = max(taken, default=0)
        while True:
            number += 1
            version = f"v{number:06d}"
            try:
                with _as_os_error(), self._fs.open(self._at(CLAIMS, version), "xb") as claim:
                    claim.write(version.encode())  # an empty object would not be written exclusively
                return version
            except FileExistsError:
                continue

    def add(self, bundle: Bundle, learner: Mapping[str, Tensor] | None) -> str:
        """Store a bundle under the next version, which is returned.

        Raises:
            OSError: it cannot be written; nothing of it is there.
            BundleError: what was written fails a check; the same.
        """
        version = self.claim()
        if self._local:
            bundle.write(Path(self._root) / version, version, learner)
        else:
            self._upload(bundle, version, learner)
        return version

    def folder(self, version: str) -> Path:
        """The local folder of a version: in place, or a copy that is fetched when it is first asked for.

        Raises:
            UnknownVersionError: it is not there.
        """
        self.require(version)
        if self._local:
            return Path(self._at(version))
        return self._fetched(version)

    def load(self, version: str, mmap: bool = True) -> Bundle:
        """A version, checked.

        Raises:
            UnknownVersionError: it is not there.
            BundleError: naming the check it fails.
        """
        return self.opened(version, lambda folder: Bundle.load(folder, mmap))

    def opened(self, version: str, opening: Callable[[Path], T]) -> T:
        """What is read of a version's folder; once more from a new copy, where the copy is damaged.

        Args:
            opening: reads it; raises BundleError where it is damaged.

        Raises:
            UnknownVersionError: it is not there.
            BundleError: naming the check it fails.
        """
        folder = self.folder(version)
        if self._local:
            return opening(folder)
        with contextlib.suppress(FileNotFoundError), self._copies.opened(version) as inode:
            try:
                return opening(folder)
            except BundleError:
                self._copies.drop(version, inode)  # it may have been damaged since it was fetched
        return opening(self.folder(version))

    def manifest(self, version: str) -> Manifest:
        """What a version says of itself.

        Raises:
            FileNotFoundError, BundleError: it is not there, or damaged.
        """
        return Manifest.parse(self.read(version, MANIFEST))

    def delete(self, version: str) -> None:
        """Take a version away; it is not there from the first step on."""
        if self._local:
            aside = Path(self._at(f".{version}.deleting"))
            Path(self._at(version)).rename(aside)
            shutil.rmtree(aside, ignore_errors=True)
            return
        self._fs.rm_file(self._at(version, MANIFEST))
        self._fs.rm(self._at(version), recursive=True)
        self._copies.drop(version)

    def tidy(self, keep: int) -> None:
        """Clear away what publishers left that died while they wrote, and all but the newest `keep` claims.

        Raises:
            OSError: it cannot be seen what is there, or not be removed.
        """
        long_ago = time.time() - ABANDONED_AFTER_S
        if self._local:
            for path in Path(self._root).iterdir():
                with contextlib.suppress(FileNotFoundError):  # a publisher may be about to give it its name
                    if _ABANDONED.match(path.name) and path.stat().st_mtime < long_ago:
                        shutil.rmtree(path, ignore_errors=True)
        else:
            for version in set(self.numbered()).difference(self.names()):
                paths = self._fs.find(self._at(version))
                if not paths or self._at(version, MANIFEST) in paths:
                    continue
                if max(self._fs.modified(path).timestamp() for path in paths) < long_ago:
                    self._fs.rm(self._at(version), recursive=True)
        for claim in self.numbered(CLAIMS)[:-keep]:
            self.remove(CLAIMS, claim)

    def read(self, *path: str) -> bytes:
        """A file, whole.

        Raises:
            FileNotFoundError, OSError: there is none, or it cannot be read.
        """
        return bytes(self._fs.cat_file(self._at(*path)))

    def replace(self, text: bytes, *path: str) -> None:
        """Write a small file, whole or not at all; its folder is made.

        Raises:
            OSError: it cannot be written; it is as it was.
        """
        self._fs.makedirs(self._at(*path[:-1]), exist_ok=True)
        if not self._local:
            self._fs.pipe_file(self._at(*path), text)  # an object is replaced at once or not at all
            return
        target = Path(self._at(*path))
        aside = target.with_name(f".{target.name}.{os.getpid()}-{time.monotonic_ns()}")
        try:
            with aside.open("wb") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            aside.replace(target)
        finally:
            aside.unlink(missing_ok=True)

    def remove(self, *path: str) -> None:
        """Delete a file, if it is there."""
        with contextlib.suppress(FileNotFoundError):
            self._fs.rm_file(self._at(*path))

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Nobody else holds this meanwhile."""
        if not self._local:
            yield
            return
        Path(self._root).mkdir(parents=True, exist_ok=True)
        with Path(self._at(LOCK)).open("wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # let go when the file is closed, by the death of its process too
            yield

    def _is_there(self, version: str) -> bool:
        """Not by `exists`: that of fsspec takes every fault for absence."""
        try:
            self._fs.info(self._at(version, MANIFEST))
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    def _at(self, *parts: str) -> str:
        return "/".join((self._root, *parts))

    def _upload(self, bundle: Bundle, version: str, learner: Mapping[str, Tensor] | None) -> None:
        with self._copies.written(version, lambda folder: bundle.write(folder, version, learner)) as folder:
            # The manifest makes the version exist, so it goes last.
            for path in sorted(folder.iterdir(), key=lambda path: path.name == MANIFEST):
                self._fs.put_file(str(path), self._at(version, path.name))

    def _fetched(self, version: str) -> Path:
        try:
            manifest = self.read(version, MANIFEST)
            names = Manifest.parse(manifest).files

            def fetch(folder: Path) -> None:
                for name in names:
                    self._fs.get_file(self._at(version, name), str(folder / name))

            return self._copies.fetched(version, manifest, fetch)
        except FileNotFoundError as error:
            raise BundleError("missing", f"{version} lacks a file: {error}") from None
