"""Where versions are kept: a folder or an object store that fsspec can reach.

v000001/          a bundle; with its manifest.json it exists, without it is half written or half deleted
claims/v000001    taken by exclusive creation, so that no two publishers get the same version
current.json      the one pointer to what serves
"""

import hashlib
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem
from torch import Tensor

from pinrec.bundle import MANIFEST, Bundle, BundleError, Manifest

CURRENT: Final = "current.json"
CLAIMS: Final = "claims"
ABANDONED_AFTER_S: Final = 3_600.0
_VERSION: Final = re.compile(r"^v\d{6,}$")
_ABANDONED: Final = re.compile(r"^\.v\d{6,}\.(writing|deleting|fetching)")


class RegistryError(RuntimeError):
    """The registry cannot do it; the message says what to do about it. What serves has not changed."""


class UnknownVersionError(RegistryError):
    """A version that the registry does not hold."""


@dataclass(frozen=True, slots=True)
class VersionInfo:
    """One version in the list.

    Attributes:
        created_at, trained_until: epoch seconds.
        problem: why the manifest cannot be read, else None.
    """

    version: str
    current: bool
    created_at: float = 0.0
    trained_until: float = 0.0
    items: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    problem: str | None = None


class Registry:
    """Versions of a model, and which of them serves.

    Args:
        url: a folder, or an address such as s3://bucket/models (fsspec and its protocol's package).
        cache: folder for versions of a registry that is not a folder; default ~/.cache/pinrec.
    """

    def __init__(self, url: str | Path, cache: Path | None = None) -> None:
        self.url = str(url)
        self._fs: Any
        if isinstance(url, Path) or "://" not in url:
            self._fs, self._root = LocalFileSystem(), str(Path(url).absolute())
        else:
            self._fs, self._root = url_to_fs(url)
        self._local = isinstance(self._fs, LocalFileSystem)
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        self._cache = (cache or home / "pinrec") / hashlib.sha256(self.url.encode()).hexdigest()[:16]

    def publish(self, bundle: Bundle, learner: Mapping[str, Tensor] | None = None, activate: bool = True) -> str:
        """Store a bundle under the next version, and point to it once it is there in full.

        The pointer never moves back to an older version: of two publishers the newer wins.

        Returns:
            the version.

        Raises:
            RegistryError: it cannot be written; the pointer stands where it stood.
            BundleError: what was written fails a check; the same.
        """
        try:
            version = self._claim()
            if self._local:
                bundle.write(Path(self._root) / version, version, learner)
            else:
                self._upload(bundle, version, learner)
            current = self.current()
            if activate and (current is None or _number(current) < _number(version)):
                self._point(version)
        except OSError as error:
            raise RegistryError(
                f"{self.url}: the bundle cannot be written ({error.strerror or error}); free disk space there, or give "
                "the registry another place. The version that serves stays as it is"
            ) from error
        return version

    def current(self) -> str | None:
        """The version that serves; None before the first. One small read.

        Raises:
            RegistryError: the pointer cannot be read.
        """
        try:
            version = json.loads(self._fs.cat_file(self._at(CURRENT)))["version"]
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RegistryError(f"{self.url}/{CURRENT} cannot be read ({error}); activate a version anew") from error
        if not isinstance(version, str) or not _VERSION.match(version):
            raise RegistryError(f"{self.url}/{CURRENT} names no version; activate a version anew")
        return version

    def versions(self) -> list[VersionInfo]:
        """All versions, oldest first, with their metrics."""
        current = self.current()
        return [self._info(version, version == current) for version in self._names()]

    def activate(self, version: str) -> None:
        """Point to a version.

        Raises:
            UnknownVersionError: it is not there; the pointer stands where it stood.
        """
        self._require(version)
        try:
            self._point(version)
        except OSError as error:
            raise RegistryError(f"{self.url}/{CURRENT} cannot be written ({error.strerror or error})") from error

    def folder(self, version: str) -> Path:
        """The local folder of a version: in place, or a copy that is fetched when it is first asked for.

        Raises:
            UnknownVersionError: it is not there.
        """
        self._require(version)
        if self._local:
            return Path(self._at(version))
        return self._fetched(version)

    def load(self, version: str, mmap: bool = True) -> Bundle:
        """A version, checked.

        Raises:
            UnknownVersionError: it is not there.
            BundleError: naming the check it fails.
        """
        folder = self.folder(version)
        try:
            return Bundle.load(folder, mmap)
        except BundleError:
            if self._local:
                raise
        # The copy may have been damaged since it was fetched.
        shutil.rmtree(folder, ignore_errors=True)
        return Bundle.load(self.folder(version), mmap)

    def prune(self, keep: int, pinned: Collection[str] = ()) -> list[str]:
        """Delete all but the newest `keep` versions, the current one and the pinned ones.

        Also clears away what publishers left that died while they wrote.

        Returns:
            the versions deleted, oldest first.
        """
        if keep < 1:
            raise ValueError(f"keep: must be at least 1, not {keep}")
        names = self._names()
        kept = {*names[-keep:], *pinned, self.current()}
        deleted = [version for version in names if version not in kept]
        for version in deleted:
            self._delete(version)
        if self._local:
            self._clear_abandoned()
        for claim in self._numbers(CLAIMS)[:-keep]:
            self._fs.rm_file(self._at(CLAIMS, claim))
        return deleted

    def _at(self, *parts: str) -> str:
        return "/".join((self._root, *parts))

    def _numbers(self, *folder: str) -> list[str]:
        self._fs.invalidate_cache()
        try:
            listed = self._fs.ls(self._at(*folder), detail=False)
        except FileNotFoundError:
            return []
        names = (path.rstrip("/").rsplit("/", 1)[-1] for path in listed)
        return sorted((name for name in names if _VERSION.match(name)), key=_number)

    def _names(self) -> list[str]:
        return [version for version in self._numbers() if self._fs.exists(self._at(version, MANIFEST))]

    def _require(self, version: str) -> None:
        if not _VERSION.match(version) or not self._fs.exists(self._at(version, MANIFEST)):
            known = ", ".join(self._names()[-5:]) or "none yet"
            raise UnknownVersionError(f"{version[:64]!r} is not in {self.url}; the newest versions are: {known}")

    def _claim(self) -> str:
        self._fs.makedirs(self._at(CLAIMS), exist_ok=True)
        taken = [_number(name) for name in self._numbers() + self._numbers(CLAIMS)]
        number = max(taken, default=0)
        while True:
            number += 1
            version = f"v{number:06d}"
            try:
                with self._fs.open(self._at(CLAIMS, version), "xb"):
                    return version
            except FileExistsError:
                continue

    def _upload(self, bundle: Bundle, version: str, learner: Mapping[str, Tensor] | None) -> None:
        with tempfile.TemporaryDirectory(prefix="pinrec-") as aside:
            folder = Path(aside) / version
            bundle.write(folder, version, learner)
            # The manifest makes the version exist, so it goes last.
            for path in sorted(folder.iterdir(), key=lambda path: path.name == MANIFEST):
                self._fs.put_file(str(path), self._at(version, path.name))

    def _point(self, version: str) -> None:
        text = json.dumps({"version": version, "at": time.time()}).encode()
        if not self._local:
            self._fs.pipe_file(self._at(CURRENT), text)  # an object is replaced at once or not at all
            return
        aside = Path(self._at(f".{CURRENT}.{os.getpid()}-{time.monotonic_ns()}"))
        try:
            with aside.open("wb") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            aside.replace(self._at(CURRENT))
        finally:
            aside.unlink(missing_ok=True)

    def _info(self, version: str, current: bool) -> VersionInfo:
        try:
            manifest = Manifest.parse(self._fs.cat_file(self._at(version, MANIFEST)))
        except (BundleError, FileNotFoundError) as error:
            return VersionInfo(version, current, problem=str(error))
        return VersionInfo(
            version, current, manifest.created_at, manifest.trained_until, manifest.items, manifest.metrics
        )

    def _fetched(self, version: str) -> Path:
        folder = self._cache / version
        if not (folder / MANIFEST).exists():
            self._cache.mkdir(parents=True, exist_ok=True)
            aside = Path(tempfile.mkdtemp(prefix=f".{version}.fetching-", dir=self._cache))
            try:
                manifest = self._fs.cat_file(self._at(version, MANIFEST))
                for name in Manifest.parse(manifest).files:
                    self._fs.get_file(self._at(version, name), str(aside / name))
                (aside / MANIFEST).write_bytes(manifest)
                shutil.rmtree(folder, ignore_errors=True)
                aside.rename(folder)
            except FileNotFoundError as error:
                raise BundleError("missing", f"{version} lacks a file: {error}") from None
            except OSError:
                if not (folder / MANIFEST).exists():  # else another process has fetched it meanwhile
                    raise
            finally:
                shutil.rmtree(aside, ignore_errors=True)
        return folder

    def _delete(self, version: str) -> None:
        if self._local:
            aside = Path(self._at(f".{version}.deleting"))
            Path(self._at(version)).rename(aside)
            shutil.rmtree(aside, ignore_errors=True)
            return
        self._fs.rm_file(self._at(version, MANIFEST))
        self._fs.rm(self._at(version), recursive=True)
        shutil.rmtree(self._cache / version, ignore_errors=True)

    def _clear_abandoned(self) -> None:
        for path in Path(self._root).iterdir():
            if _ABANDONED.match(path.name) and path.stat().st_mtime < time.time() - ABANDONED_AFTER_S:
                shutil.rmtree(path, ignore_errors=True)


def _number(version: str) -> int:
    return int(version[1:])
