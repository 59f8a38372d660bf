"""What the trainer tells about itself. No torch here: it can be told before training has begun."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class TrainerStatus:
    """How training stands."""

    phase: str = "starting"
    """starting, standing by, waiting for events, training, publishing, evaluating or idle."""
    step: int = 0
    steps: int = 0
    loss: float | None = None
    events: int = 0
    """Events that training looks at."""
    rounds: int = 0
    version: str | None = None
    """The last one published."""
    trained_until: float | None = None
    """Kafka time of the newest event in it, epoch s."""
    metrics: dict[str, float] = field(default_factory=dict)
    gap: str | None = None
    """What the archive lacks."""
    error: str | None = None
    refused: int = 0
    """Candidates that the gate refused since start."""
    last_refused: dict[str, Any] | None = None
    """The newest of them: version, and refusals with check, figure, bound and message."""
    rollbacks: int = 0
    """Versions taken back since start because users engaged with them less."""
    outcomes: dict[str, dict[str, float]] = field(default_factory=dict)
    """impressions, engaged and rate of each version."""
    watch_trouble: str | None = None
