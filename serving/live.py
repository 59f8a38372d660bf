"""The bundle a replica serves from, and how the next one takes its place under load."""

import logging
import threading
import time
from collections.abc import Callable

from pinrec.bundle import Bundle, BundleError
from pinrec.config import Vocabulary
from pinrec.registry import Registry
from pinrec.versions import RegistryError

log = logging.getLogger(__name__)


class LiveBundle:
    """One reference to an immutable bundle; a new one is loaded, checked and warmed aside first.

    Whoever makes a batch reads `bundle` once and uses that object for all of it, so no answer
    mixes versions. A bundle that fails a check never becomes live: the old one goes on serving,
    and the failed one is tried again only after the registry has pointed to another version. A
    replica that has no old one takes the newest that passed the gate and can be loaded.

    Args:
        registry: where versions are.
        vocabulary: the declared one; a bundle trained for another is refused.
        pinned: serve this version whatever the registry points to.
        warm: makes a few answers with a bundle before it goes live.
        revocable: let go of the pinned version while it is refused or withdrawn.
    """

    def __init__(
        self,
        registry: Registry,
        vocabulary: Vocabulary,
        pinned: str | None,
        warm: Callable[[Bundle], None],
        revocable: bool = False,
    ) -> None:
        self._registry, self._vocabulary, self._pinned, self._warm = registry, vocabulary, pinned, warm
        self._revocable = revocable
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.bundle: Bundle | None = None
        self.live_since: float | None = None
        self.refused: dict[str, str] = {}
        self._failed: str | None = None
        self._revoked: str | None = None
        self.swaps = 0
        self.registry_error: str | None = None

    def start(self, poll_s: float) -> None:
        """Watch the registry's pointer in a thread of its own."""
        self._thread = threading.Thread(target=self._watch, args=(poll_s,), name="live-bundle", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop watching."""
        self._stop.set()

    def wanted(self) -> str | None:
        """The version that should be live; None before the first.

        Raises:
            RegistryError, OSError: the registry cannot be read.
        """
        return self._pinned or self._registry.current()

    def refresh(self) -> bool:
        """Take the version the registry points to, if it is another one. True if another one is live now."""
        try:
            wanted = self.wanted()
            self.registry_error = None
            if wanted != self._failed:
                self._failed = None
            if wanted is None or self._is_revoked(wanted) or wanted == self.version:
                return False
            bundle = None
            if wanted != self._failed and (bundle := self._checked(wanted)) is None:
                self._failed = wanted
            if bundle is None:
                bundle = self._older(wanted)
        except (RegistryError, OSError) as error:  # of the place, not of the bundle: it may be back at the next look
            self.registry_error = str(error)
            return False
        if bundle is None:
            return False
        self.refused.pop(bundle.version, None)
        self.bundle = bundle
        self.live_since = time.time()
        self.swaps += 1
        log.info("model %s is live", bundle.version)
        return True

    @property
    def version(self) -> str | None:
        """The live version."""
        return self.bundle.version if self.bundle else None

    @property
    def trouble(self) -> str | None:
        """Why the version that should be live is not."""
        if self._revoked:
            return self._revoked
        failed = self._failed
        return f"{failed} refused: {self.refused[failed]}" if failed else self.registry_error

    def _checked(self, version: str) -> Bundle | None:
        try:
            bundle = self._registry.load(version)
            if bundle.vocabulary != self._vocabulary:
                raise BundleError("vocabulary", "trained for other actions or surfaces than are declared")
            self._warm(bundle)
        except (RegistryError, OSError):
            raise
        except Exception as error:  # a bundle that cannot answer, for whatever reason, must not serve
            reason = str(error) if isinstance(error, BundleError) else f"{type(error).__name__}: {error}"
            self.refused[version] = reason
            log.error("model %s refused, %s goes on serving: %s", version, self.version, reason)
            return None
        return bundle

    def _is_revoked(self, version: str) -> bool:
        """Whether the version must not serve; its bundle is let go of then."""
        verdict = self._registry.verdict(version) if self._revocable else None
        if verdict is None or verdict.state == "passed":
            self._revoked = None
            return False
        self._revoked = f"it was {verdict.state} ({verdict.reason})"
        if self.bundle is not None:
            log.warning("model %s is live no more: %s", version, self._revoked)
            self.bundle, self.live_since = None, None
        return True

    def _older(self, version: str) -> Bundle | None:
        """What a replica goes on with that starts while the current version is broken."""
        if self.bundle is not None or self._pinned:
            return None
        for name in self._registry.older(version):
            if name in self.refused:
                continue
            try:
                if (bundle := self._checked(name)) is not None:
                    return bundle
            except (RegistryError, OSError) as error:  # the next one may be readable; this one is tried again
                log.warning("model %s cannot be read: %s", name, error)
        return None

    def _watch(self, poll_s: float) -> None:
        while not self._stop.is_set():
            try:
                self.refresh()
            except Exception:  # a watcher that dies would freeze the model in silence
                log.exception("looking for a new model failed; trying again")
            self._stop.wait(poll_s)
