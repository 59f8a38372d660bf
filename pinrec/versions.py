"""What versions are called, how they are ordered, and what a list tells of one."""

import re
from dataclasses import dataclass, field
from typing import Final

from pinrec.verdicts import State, Verdict

VERSION: Final = re.compile(r"v\d{6,}")


def version_number(version: str) -> int:
    """What versions are ordered by. Their names are not, from v1000000 on."""
    return int(version[1:])


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
