"""What an ingestor tells about itself."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PartitionStatus:
    """How far one partition is. Offsets are the next to come; `end` is Kafka's."""

    position: int
    applied: int
    archived: int
    generated: int | None
    end: int


@dataclass(frozen=True, slots=True)
class IngestStatus:
    """Counters since the start, and the present state of the partitions this member has."""

    connected: bool
    applied: int
    duplicates: int
    deleted: int
    dead_letters: int
    generated_submitted: int
    gaps: int
    stalls: int
    as_of: float | None
    """Epoch seconds up to which every partition is applied, by any member."""
    halted: str | None
    last_error: str | None
    lag: int
    """Events that Kafka holds in this member's partitions and the store does not."""
    owed: int
    """Lists for users with new events in these partitions that are not published yet."""
    partitions: dict[int, PartitionStatus]
