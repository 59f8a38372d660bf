"""What every sequence store promises. One contract test suite proves it for each backend."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from pinrec.config import Vocabulary
from pinrec.history import History, HistoryEvent

Change: TypeAlias = tuple[str, HistoryEvent | None]
"""(user id, event), or (user id, None) to delete the user."""


class OffsetMismatchError(RuntimeError):
    """The batch does not start where the store stands: its writer lost the partition, or a batch is missing."""

    def __init__(self, partition: int, stored: int, first: int) -> None:
        super().__init__(
            f"partition {partition}: the store stands at offset {stored}, the batch starts at {first}; "
            "another member has the partition now, or a batch was left out"
        )
        self.partition, self.stored, self.first = partition, stored, first


@dataclass(frozen=True, slots=True)
class Applied:
    """What one batch did."""

    taken: int
    duplicates: int
    deleted: int


class Batch(NamedTuple):
    """What one partition brought.

    Attributes:
        partition: of the event topic.
        first_offset: must equal the stored offset, if there is one.
        next_offset: stored as the new offset; >= first_offset.
        changes: in log order.
        as_of: epoch seconds; everything the partition held by then is applied with this batch.
    """

    partition: int
    first_offset: int
    next_offset: int
    changes: Sequence[Change]
    as_of: float


class Deletions(NamedTuple):
    """Who was deleted since a mark.

    Attributes:
        mark: to ask with the next time; it grows by one with each deletion.
        user_ids: in order; None where there were more than the store remembers.
    """

    mark: int
    user_ids: list[str] | None


class SequenceStore(ABC):
    """Bounded histories of all users, and how far each partition of the event topic is applied."""

    @abstractmethod
    def apply_all(self, batches: Sequence[Batch]) -> list[Applied]:
        """Store the changes and offsets of several partitions in one transaction: all of them or none.

        Raises:
            OffsetMismatchError: nothing was changed.
        """

    def apply(
        self, partition: int, first_offset: int, next_offset: int, changes: Sequence[Change], as_of: float
    ) -> Applied:
        """`apply_all` with one batch.

        Raises:
            OffsetMismatchError: nothing was changed.
        """
        return self.apply_all([Batch(partition, first_offset, next_offset, changes, as_of)])[0]

    @abstractmethod
    def offset(self, partition: int) -> int | None:
        """Next offset to apply; None if the partition was never applied."""

    @abstractmethod
    def as_of(self) -> float | None:
        """Epoch seconds up to which every partition is applied (the least over all); None before the first."""

    @abstractmethod
    def touch(self, as_of: dict[int, float]) -> None:
        """Note that idle partitions (by number) have nothing unapplied up to these times."""

    @abstractmethod
    def bind(self, log_id: str, vocabulary: Vocabulary) -> None:
        """Tie the store to one log (cluster and topic), and to what the indices in its histories mean.

        A vocabulary may grow at the end of its actions and of its surfaces; the names it had keep their indices.

        Raises:
            StoreMismatchError: it is tied to another log, whose offsets mean nothing in this one, or to other names.
        """

    @abstractmethod
    def read(self, user_ids: Sequence[str]) -> list[History | None]:
        """Histories in the order asked for; None for a user without one. One consistent view."""

    @abstractmethod
    def deletions(self, since: int) -> Deletions:
        """Users whose histories were deleted after the mark `since` (0 = ever), for whoever keeps anything of them."""

    @abstractmethod
    def count(self) -> int:
        """Number of users with a history."""

    @abstractmethod
    def close(self) -> None:
        """Release files or connections."""


class StoreMismatchError(RuntimeError):
    """The store belongs to another log, format, window or vocabulary."""


def check_names(kind: str, held: Sequence[str], declared: Sequence[str]) -> None:
    """Whether declared names may take the place of those a store holds.

    Raises:
        StoreMismatchError: they would give stored indices another meaning.
    """
    if list(declared[: len(held)]) != list(held):
        raise StoreMismatchError(
            f"vocabulary.{kind}: the sequence store holds {', '.join(held)} in this order, the settings declare "
            f"{', '.join(declared)}; add new names at the end, or start with another state.root"
        )
