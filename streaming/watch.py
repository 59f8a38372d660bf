"""After the flip: users' outcomes watch the versions that serve, and take back what they engage with less."""

import logging
import threading

from pinrec.config import GateSettings, Vocabulary
from pinrec.registry import Registry
from pinrec.versions import RegistryError, version_number
from streaming.archive import Archive, ArchiveError
from streaming.version_outcomes import Comparison, Outcomes, VersionOutcomes

log = logging.getLogger(__name__)


class Watch:
    """Looks at the archive in a thread of its own, whatever training does meanwhile.

    What it counts lies in the registry's `outcomes.json`: a restart goes on from it, and lists of versions show it.

    Args:
        pinned: this version serves whatever happens, so nothing is taken back.
    """

    def __init__(
        self, archive: Archive, registry: Registry, vocabulary: Vocabulary, limits: GateSettings, pinned: str | None
    ) -> None:
        self._registry, self._limits, self._pinned = registry, limits, pinned
        self._outcomes = VersionOutcomes(archive, vocabulary, limits.settle_s)
        self._loaded = False
        self._checking = threading.Lock()
        self.rollbacks = 0
        self.trouble: str | None = None
        self.kept: frozenset[str] = frozenset()
        """Versions to go back to, now or when the newest are known better: not to be deleted."""
        self.looked = False
        """Whether `kept` says so yet; nothing should be deleted before."""

    @property
    def outcomes(self) -> dict[str, Outcomes]:
        """Outcomes by version, so far."""
        return dict(self._outcomes.of)

    def run(self, stop: threading.Event) -> None:
        """Watch until told to stop."""
        while not stop.wait(self._limits.watch_interval_s):
            try:
                self.check()
                self.trouble = None
            except (OSError, ValueError, RegistryError, ArchiveError) as error:
                log.error("the watch over versions failed; trying again: %s", error)
                self.trouble = f"the watch over versions: {error}"

    def check(self) -> str | None:
        """Count what the archive gained; roll back if the newest versions do worse for sure. By any thread.

        Returns:
            the version that was rolled back to, else None.

        Raises:
            RegistryError: it cannot be read or written, or holds nothing to go back to.
            OSError, ArchiveError: the archive cannot be read.
        """
        with self._checking:
            return self._check()

    def _check(self) -> str | None:
        if not self._loaded:
            self._load()
        changed = self._outcomes.update()
        current = self._registry.current()
        if current is None:
            self.looked = True
            return None
        verdict = self._registry.verdict(current)
        if verdict is not None and verdict.state == "withdrawn" and not (self._pinned or verdict.forced):
            # A rollback was cut short between its verdict and the pointer.
            return self._registry.rollback(verdict.refusals[0])
        if not (changed or self._outcomes.of):
            self.looked = True
            return None
        if changed:
            self._registry.write_outcomes(self._outcomes.dump())
        comparison = self._comparison(current)
        stored = self._registry.names()
        trusted = [version for version in stored if version in comparison.before]
        suspects = [version for version in stored if version in comparison.newest]
        self.kept, self.looked = frozenset(trusted[-1:] + suspects[:1]), True
        if self._pinned or (verdict is not None and verdict.forced):
            return None
        if (reason := comparison.drop(self._limits)) is None:
            return None
        target = self._registry.rollback(reason, trusted[-1] if trusted else None)
        self.rollbacks += 1
        log.error("rolled back from %s to %s: %s", current, target, reason)
        return target

    def _load(self) -> None:
        """Go on from the counts in the registry. The archive has all they were made of, so damaged ones are no loss."""
        if (text := self._registry.read_outcomes()) is not None:
            try:
                self._outcomes.load(text)
            except ValueError as error:
                log.warning("outcomes are counted anew from the archive: %s", error)
        self._loaded = True

    def _comparison(self, current: str) -> Comparison:
        number = version_number(current)
        served = [version for version in self._outcomes.of if version_number(version) <= number]
        newest_first = sorted(served, key=version_number, reverse=True)
        standing = (version for version in newest_first if not self._registry.is_bad(version))
        return Comparison.of(standing, self._outcomes.of, self._limits.watch_impressions)
