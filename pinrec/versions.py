"""What versions are called, how they are ordered, what a list tells of one, and why one cannot be had."""

import re
from dataclasses import dataclass, field
from typing import Final

from pinrec.verdicts import State, Verdict

VERSION: Final = re.compile(r"v\d{6,}")


def version_number(version: str) -> int:
    """What versions are ordered by. Their names are not, from v1000000 on."""
    return int(version[1:])


class RegistryError(RuntimeError):
    """The registry cannot do it; the message says what to do about it. What serves has not changed."""


class UnknownVersionError(RegistryError):
    """A version that the registry does not hold."""


class ForbiddenVersionError(RegistryError):
    """A version that was refused or withdrawn."""


class NothingOlderError(RegistryError):
    """No version to roll back to."""


@dataclass(frozen=True, slots=True)
class VersionInfo:
    """One version in the list.

    Attributes:
        created_at, trained_until: epoch seconds.
        problem: why the manifest cannot be read, else None.
        verdict: what was decided about it; None = nothing yet.
        stored: whether there is a bundle; of a candidate that could not be written only the verdict is left.
    """

    version: str
    current: bool
    created_at: float = 0.0
    trained_until: float = 0.0
    items: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    problem: str | None = None
    verdict: Verdict | None = None
    stored: bool = True

    @property
    def state(self) -> State:
        """Candidate, passed, refused or withdrawn."""
        return self.verdict.state if self.verdict else "candidate"
