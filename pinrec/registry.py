"""Which version serves, which may, and which must not: decisions about the bundles of a store.

verdicts/v000001.json what was decided about a version (`pinrec.verdicts`); without it the version is a candidate
current.json          the one pointer to what serves, and when other versions left it
outcomes.json         how users took the versions (`streaming.version_outcomes`)

They lie beside the bundles (`pinrec.bundle_store`). On an object store, which has no lock, of two that move the pointer
at once the last wins, each object whole; what a verdict keeps from serving is looked at before each move.
"""

import contextlib
import json
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, Literal

from torch import Tensor

from pinrec.bundle import Bundle, BundleError
from pinrec.bundle_copies import KEPT
from pinrec.bundle_store import BundleStore, T
from pinrec.verdicts import Refusal, Verdict
from pinrec.versions import (
    VERSION,
    ForbiddenVersionError,
    NothingOlderError,
    RegistryError,
    VersionInfo,
    version_number,
)

CURRENT: Final = "current.json"
VERDICTS: Final = "verdicts"
OUTCOMES: Final = "outcomes.json"
LOADING_S: Final = 300.0
"""A replica that read the pointer has this long to load what it named before that may be deleted."""
_REMEMBERED_S: Final = 3_600.0


class Registry:
    """Versions of a model, and which of them serves.

    Args:
        url, cache, copies: see `BundleStore`.

    Raises:
        RegistryError: nothing here can reach such an address.
    """

    def __init__(self, url: str | Path, cache: Path | None = None, copies: int = KEPT) -> None:
        try:
            self._store = BundleStore(url, cache, copies)
        except OSError as error:
            raise RegistryError(f"{url} cannot be a registry ({error}); install what its protocol needs") from error
        self.url = self._store.url

    def names(self) -> list[str]:
        """The versions that are there in full, oldest first."""
        return self._store.names()

    def folder(self, version: str) -> Path:
        """See `BundleStore.folder`."""
        return self._store.folder(version)

    def load(self, version: str, mmap: bool = True) -> Bundle:
        """See `BundleStore.load`."""
        return self._store.load(version, mmap)

    def opened(self, version: str, opening: Callable[[Path], T]) -> T:
        """See `BundleStore.opened`."""
        return self._store.opened(version, opening)

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
            version = self._store.add(bundle, learner)
        except OSError as error:
            raise RegistryError(
                f"{self.url}: the bundle cannot be written ({error.strerror or error}); {self._store.remedy(error)}, "
                "or give the registry another place. The version that serves stays as it is"
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
            version = self._store.claim() if version is None else version
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
            return Verdict.parse(self._store.read(VERDICTS, f"{version}.json"))
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
            version = json.loads(self._store.read(CURRENT))["version"]
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise RegistryError(f"{self.url}/{CURRENT} cannot be read ({error}); activate a version anew") from error
        if not isinstance(version, str) or not VERSION.fullmatch(version):
            raise RegistryError(f"{self.url}/{CURRENT} names no version; activate a version anew")
        return version

    def versions(self) -> list[VersionInfo]:
        """All versions, oldest first, with their metrics and verdicts; also refused ones that were never stored.

        Raises:
            RegistryError: they cannot be read.
        """
        try:
            current = self.current()
        except RegistryError:  # a list shows what to activate when the pointer is damaged
            current = None
        try:
            stored = set(self.names())
            judged = self._store.numbered(VERDICTS)
            return [
                self._info(version, version == current, version in stored)
                for version in sorted(stored.union(judged), key=version_number)
            ]
        except OSError as error:
            raise RegistryError(f"{self.url} cannot be read ({error})") from error

    def activate(self, version: str, force: bool = False) -> None:
        """Point to a version.

        Args:
            force: although it was refused or withdrawn; from then on it counts as passed.

        Raises:
            UnknownVersionError: it is not there; the pointer stands where it stood.
            ForbiddenVersionError: it was refused or withdrawn; the same.
        """
        with self._moving():
            self._store.require(version)
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
        """What `write_outcomes` wrote last; None before the first time.

        Raises:
            RegistryError: it cannot be read.
        """
        try:
            return self._store.read(OUTCOMES)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise RegistryError(f"{self.url}/{OUTCOMES} cannot be read ({error})") from error

    def write_outcomes(self, text: bytes) -> None:
        """Replace the file of outcomes.

        Raises:
            RegistryError: it cannot be written.
        """
        try:
            self._store.replace(text, OUTCOMES)
        except OSError as error:
            raise RegistryError(f"{self.url}/{OUTCOMES} cannot be written ({error.strerror or error})") from error

    def prune(self, keep: int, pinned: Collection[str] = (), loading_s: float = LOADING_S) -> list[str]:
        """Delete all but the newest `keep` versions, the current one, the pinned and what a replica may be loading.

        A bundle without a verdict counts for nothing: its publisher died, or judges it now, so only the newest of all
        stays. Also clears away what publishers left that died while they wrote.

        Args:
            loading_s: how long a version stays after it was the current one.

        Returns:
            the versions deleted, oldest first.

        Raises:
            RegistryError: the registry cannot be read or written; what was not deleted by then stays.
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
                self._store.remove(VERDICTS, f"{version}.json")
                self._store.delete(version)
            self._forget_verdicts(keep)
            self._store.tidy(keep)
        return deleted

    @contextlib.contextmanager
    def _moving(self) -> Iterator[None]:
        """Nobody else looks at the pointer to move it meanwhile; a fault of the place is told as a RegistryError."""
        try:
            with self._store.locked():
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
        self._store.replace(verdict.model_dump_json().encode(), VERDICTS, f"{version}.json")
        return verdict

    def _left(self) -> dict[str, float]:
        """When versions left the pointer, epoch s; the latest hour's."""
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
            left = json.loads(self._store.read(CURRENT))["left"]
            return {str(version): float(at) for version, at in left.items()}
        return {}

    def _point(self, version: str) -> None:
        now, left = time.time(), self._left()
        with contextlib.suppress(RegistryError):  # a damaged pointer is replaced, whatever it said
            if (current := self.current()) and current != version:
                left[current] = now
        recent = {name: at for name, at in left.items() if at > now - _REMEMBERED_S}
        self._store.replace(json.dumps({"version": version, "at": now, "left": recent}).encode(), CURRENT)

    def _forget_verdicts(self, keep: int) -> None:
        """Of refused versions that were never stored, the newest `keep` stay in the list."""
        stored = set(self.names())
        for version in [version for version in self._store.numbered(VERDICTS) if version not in stored][:-keep]:
            self._store.remove(VERDICTS, f"{version}.json")

    def _info(self, version: str, current: bool, stored: bool) -> VersionInfo:
        verdict = self.verdict(version)
        if not stored:
            at = verdict.at if verdict else 0.0
            return VersionInfo(version, current, at, problem="it was never stored", verdict=verdict, stored=False)
        try:
            manifest = self._store.manifest(version)
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
