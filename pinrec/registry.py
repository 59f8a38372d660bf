"""Where versions are kept: a folder or an object store that fsspec can reach.

v000001/              a bundle; with its manifest.json it exists, without it is half written or half deleted
claims/v000001        taken by exclusive creation, so that no two publishers get the same version
verdicts/v000001.json what was decided about it (`pinrec.verdicts`); without it the version is a candidate
current.json          the one pointer to what serves, and when other versions left it
outcomes.json         how users took the versions (`streaming.version_outcomes`)
lock                  held while the pointer is looked at and moved; a folder's only

An object store has no lock: it should have one writer at a time (one trainer leads). Of two that move the pointer at
once the last wins, each object whole; what a verdict keeps from serving is looked at before each move.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal

from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem
from torch import Tensor

from pinrec.bundle import MANIFEST, Bundle, BundleError, Manifest
from pinrec.verdicts import Refusal, Verdict
from pinrec.versions import VERSION, VersionInfo, version_number

CURRENT: Final = "current.json"
LOCK: Final = "lock"
CLAIMS: Final = "claims"
VERDICTS: Final = "verdicts"
OUTCOMES: Final = "outcomes.json"
ABANDONED_AFTER_S: Final = 3_600.0
LOADING_S: Final = 300.0
"""A replica that read the pointer has this long to load what it named before that may be deleted."""
_ABANDONED: Final = re.compile(r"^\.v\d{6,}\.(writing|deleting|fetching)")


class RegistryError(RuntimeError):
    """The registry cannot do it; the message says what to do about it. What serves has not changed."""


class UnknownVersionError(RegistryError):
    """A version that the registry does not hold."""


class ForbiddenVersionError(RegistryError):
    """A version that was refused or withdrawn."""


class NothingOlderError(RegistryError):
    """No version to roll back to."""


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
        except OSError as error:
            raise RegistryError(
                f"{self.url}: the bundle cannot be written ({error.strerror or error}); free disk space there, or give "
                "the registry another place. The version that serves stays as it is"
            ) from error
        if activate:
            with self._moving():
                self._decide(version, "passed", ())
                if (current := self.current()) is None or version_number(current) < version_number(version):
                    self._point(version)
        return version

    def advance(self, version: str, parent: str | None) -> Verdict:
        """Let a candidate take the place of its parent.

        It is refused where the parent was withdrawn meanwhile, or somebody has pointed to another version: an
        operator's choice is not undone by a round that was begun before it.

        Args:
            parent: what served when the candidate's training went on from it; None = nothing did.

        Returns:
            what is decided about the candidate now; it serves if that is "passed".

        Raises:
            RegistryError: the registry cannot be read or written; the pointer stands where it stood.
        """
        with self._moving():
            verdict, current = self.verdict(version), self.current()
            if verdict is not None and (verdict.state != "passed" or current == version):
                return verdict
            why = None
            if parent is not None and self.is_bad(parent):
                why = f"trained on from {parent}, which was withdrawn"
            elif current not in (None, parent):
                why = f"trained on from {parent or 'nothing'}, and {current} was activated meanwhile"
            if why is not None:
                return self._decide(version, "refused", [Refusal(check="parent", message=why)])
            verdict = self._decide(version, "passed", ())
            self._point(version)
        return verdict

    def refuse(self, refusals: Sequence[Refusal], version: str | None = None) -> str:
        """Write down that a candidate must not serve.

        Args:
            version: None = it could not even be stored; it takes the next number, so that it is listed.

        Returns:
            the version.

        Raises:
            RegistryError: it cannot be written.
        """
        with self._moving():
            version = self._claim() if version is None else version
            self._decide(version, "refused", refusals)
        return version

    def rollback(self, reason: Refusal, to: str | None = None) -> str:
        """Point to an older version that passed, and withdraw what is left behind: it never serves again by itself.

        Args:
            to: None = the newest older version that passed.

        Returns:
            the version that serves now.

        Raises:
            RegistryError: there is none to go back to, or the registry cannot be written.
        """
        with self._moving():
            if (left := self.current()) is None:
                raise NothingOlderError(f"{self.url} has no current version to roll back")
            older = self.older(left)
            if not older or (to is not None and to not in older):
                raise NothingOlderError(
                    f"{self.url} holds no {to or 'version'} older than {left} that passed the gate; let the trainer "
                    "publish another one, or activate a version by force"
                )
            target = to or older[0]
            # Before the pointer moves: if this ends half-way, another rollback goes on from here.
            for version in self.names():
                between = version_number(target) < version_number(version) <= version_number(left)
                if between and (version == left or self._may(version)):
                    self._decide(version, "withdrawn", [reason])
            self._point(target)
        return target

    def older(self, version: str) -> list[str]:
        """Versions before this one that passed the gate, newest first."""
        number = version_number(version)
        return [name for name in reversed(self.names()) if version_number(name) < number and self._may(name)]

    def verdict(self, version: str) -> Verdict | None:
        """What was decided about a version; None = nothing yet."""
        try:
            return Verdict.parse(self._fs.cat_file(self._at(VERDICTS, f"{version}.json")))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise RegistryError(f"{self.url}/{VERDICTS}/{version}.json cannot be read ({error})") from error

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
        if not isinstance(version, str) or not VERSION.fullmatch(version):
            raise RegistryError(f"{self.url}/{CURRENT} names no version; activate a version anew")
        return version

    def versions(self) -> list[VersionInfo]:
        """All versions, oldest first, with their metrics and verdicts; also refused ones that were never stored."""
        try:
            current = self.current()
        except RegistryError:  # a list shows what to activate when the pointer is damaged
            current = None
        stored = set(self.names())
        judged = self._numbers(VERDICTS)
        return [
            self._info(version, version == current, version in stored)
            for version in sorted(stored.union(judged), key=version_number)
        ]

    def activate(self, version: str, force: bool = False) -> None:
        """Point to a version.

        Args:
            force: although it was refused or withdrawn; from then on it counts as passed.

        Raises:
            UnknownVersionError: it is not there; the pointer stands where it stood.
            ForbiddenVersionError: it was refused or withdrawn; the same.
        """
        self._require(version)
        with self._moving():
            verdict = self.verdict(version)
            passed = verdict is not None and verdict.state == "passed"
            if verdict is not None and not passed and not force:
                raise ForbiddenVersionError(
                    f"{version} was {verdict.state} ({verdict.reason}); to serve it all the same, activate it by "
                    f'force: --force, or {{"force": true}} over HTTP'
                )
            if force or not passed:
                self._decide(version, "passed", (), forced=force)
            self._point(version)

    def read_outcomes(self) -> bytes | None:
        """What `write_outcomes` wrote last; None before the first time."""
        try:
            return bytes(self._fs.cat_file(self._at(OUTCOMES)))
        except FileNotFoundError:
            return None

    def write_outcomes(self, text: bytes) -> None:
        """Replace the file of outcomes.

        Raises:
            RegistryError: it cannot be written.
        """
        try:
            self._fs.makedirs(self._root, exist_ok=True)
            self._replace(text, OUTCOMES)
        except OSError as error:
            raise RegistryError(f"{self.url}/{OUTCOMES} cannot be written ({error.strerror or error})") from error

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

    def prune(self, keep: int, pinned: Collection[str] = (), loading_s: float = LOADING_S) -> list[str]:
        """Delete all but the newest `keep` versions, the current one, the pinned and what a replica may be loading.

        A bundle without a verdict counts for nothing: its publisher died, or judges it now, so only the newest of all
        stays. Also clears away what publishers left that died while they wrote.

        Args:
            loading_s: how long a version stays after it was the current one.

        Returns:
            the versions deleted, oldest first.
        """
        if keep < 1:
            raise ValueError(f"keep: must be at least 1, not {keep}")
        with self._moving():
            names = self.names()
            left = self._left()
            loading = [version for version, at in left.items() if at > time.time() - loading_s]
            verdicts = {version: self.verdict(version) for version in names}
            judged = [version for version, verdict in verdicts.items() if verdict]
            # As many that may serve as without refused ones: else a bad hour would leave nothing to go back to.
            good = [version for version, verdict in verdicts.items() if verdict and verdict.state == "passed"]
            in_work = [version for version in names[-1:] if not verdicts[version]]
            kept = {*judged[-keep:], *good[-keep:], *in_work, *pinned, *loading, self.current()}
            deleted = [version for version in names if version not in kept]
            for version in deleted:
                self._delete(version)
            self._forget_verdicts(keep)
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
        names = (path.rstrip("/").rsplit("/", 1)[-1].removesuffix(".json") for path in listed)
        return sorted((name for name in names if VERSION.fullmatch(name)), key=version_number)

    def names(self) -> list[str]:
        """The versions that are there in full, oldest first."""
        return [version for version in self._numbers() if self._fs.exists(self._at(version, MANIFEST))]

    def _require(self, version: str) -> None:
        if not VERSION.fullmatch(version) or not self._fs.exists(self._at(version, MANIFEST)):
            known = ", ".join(self.names()[-5:]) or "none yet"
            raise UnknownVersionError(f"{version[:64]!r} is not in {self.url}; the newest versions are: {known}")

    def _claim(self) -> str:
        self._fs.makedirs(self._at(CLAIMS), exist_ok=True)
        taken = [version_number(name) for name in self._numbers() + self._numbers(CLAIMS)]
        number = max(taken, default=0)
        while True:
            number += 1
            version = f"v{number:06d}"
            try:
                with self._fs.open(self._at(CLAIMS, version), "xb") as claim:
                    claim.write(version.encode())  # an empty object would not be written exclusively
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

    @contextlib.contextmanager
    def _moving(self) -> Iterator[None]:
        """Nobody else looks at the pointer to move it meanwhile; a fault of the place is told as a RegistryError."""
        try:
            if not self._local:
                yield
                return
            Path(self._root).mkdir(parents=True, exist_ok=True)
            with Path(self._at(LOCK)).open("wb") as file:
                fcntl.flock(file, fcntl.LOCK_EX)  # let go when the file is closed, by the death of its process too
                yield
        except OSError as error:
            raise RegistryError(
                f"{self.url} cannot be written ({error.strerror or error}); the version that serves stays as it is"
            ) from error

    def is_bad(self, version: str) -> bool:
        """Whether a version was refused or withdrawn."""
        verdict = self.verdict(version)
        return verdict is not None and verdict.state != "passed"

    def _may(self, version: str) -> bool:
        verdict = self.verdict(version)
        return verdict is not None and verdict.state == "passed"

    def _decide(
        self,
        version: str,
        state: Literal["passed", "refused", "withdrawn"],
        why: Sequence[Refusal],
        forced: bool = False,
    ) -> Verdict:
        verdict = Verdict(state=state, at=time.time(), refusals=tuple(why), forced=forced)
        self._fs.makedirs(self._at(VERDICTS), exist_ok=True)
        self._replace(verdict.model_dump_json().encode(), VERDICTS, f"{version}.json")
        return verdict

    def _left(self) -> dict[str, float]:
        """When versions left the pointer, epoch s; the latest hour's."""
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
            left = json.loads(self._fs.cat_file(self._at(CURRENT)))["left"]
            return {str(version): float(at) for version, at in left.items()}
        return {}

    def _point(self, version: str) -> None:
        now, left = time.time(), self._left()
        with contextlib.suppress(RegistryError):  # a damaged pointer is replaced, whatever it said
            if (current := self.current()) and current != version:
                left[current] = now
        recent = {name: at for name, at in left.items() if at > now - ABANDONED_AFTER_S}
        self._replace(json.dumps({"version": version, "at": now, "left": recent}).encode(), CURRENT)

    def _replace(self, text: bytes, *parts: str) -> None:
        """A small file, whole or as it was."""
        if not self._local:
            self._fs.pipe_file(self._at(*parts), text)  # an object is replaced at once or not at all
            return
        path = Path(self._at(*parts))
        aside = path.with_name(f".{path.name}.{os.getpid()}-{time.monotonic_ns()}")
        try:
            with aside.open("wb") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            aside.replace(path)
        finally:
            aside.unlink(missing_ok=True)

    def _forget_verdicts(self, keep: int) -> None:
        """Of refused versions that were never stored, the newest `keep` stay in the list."""
        stored = set(self.names())
        for version in [version for version in self._numbers(VERDICTS) if version not in stored][:-keep]:
            self._fs.rm_file(self._at(VERDICTS, f"{version}.json"))

    def _info(self, version: str, current: bool, stored: bool) -> VersionInfo:
        verdict = self.verdict(version)
        if not stored:
            at = verdict.at if verdict else 0.0
            return VersionInfo(version, current, at, problem="it was never stored", verdict=verdict, stored=False)
        try:
            manifest = Manifest.parse(self._fs.cat_file(self._at(version, MANIFEST)))
        except (BundleError, FileNotFoundError) as error:
            return VersionInfo(version, current, problem=str(error), verdict=verdict)
        return VersionInfo(
            version,
            current,
            manifest.created_at,
            manifest.trained_until,
            manifest.items,
            manifest.metrics,
            None,
            verdict,
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
        with contextlib.suppress(FileNotFoundError):
            self._fs.rm_file(self._at(VERDICTS, f"{version}.json"))
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
