"""A sequence store written as plainly as possible, with lists: what real backends are compared with."""

from collections.abc import Sequence

from pinrec.config import Vocabulary
from pinrec.history import History, HistoryEvent, window_start
from streaming.stores.base import (
    Applied,
    Batch,
    Deletions,
    OffsetMismatchError,
    SequenceStore,
    StoreMismatchError,
    check_names,
)


class ReferenceHistory:
    """All a user ever did, in order, and how much of it has left the window."""

    def __init__(self) -> None:
        self.events: list[HistoryEvent] = []
        self.left = 0

    def add(self, event: HistoryEvent, limit: int, stride: int) -> bool:
        if event.event_id in [known.event_id for known in self.events]:
            return False
        if self.left and event.order < self.events[self.left].order:
            return False
        self.events = sorted([*self.events, event], key=lambda e: (e.timestamp, e.event_id))
        self.left = window_start(len(self.events), limit, stride)
        return True

    def window(self) -> list[HistoryEvent]:
        return self.events[self.left :]


class ReferenceStore(SequenceStore):
    """One event at a time, no bytes, no shortcuts."""

    def __init__(self, limit: int, stride: int) -> None:
        self.limit, self.stride = limit, stride
        self.users: dict[str, ReferenceHistory] = {}
        self.offsets: dict[int, int] = {}
        self.moments: dict[int, float] = {}
        self.deleted: list[str] = []
        self.log_id: str | None = None
        self.names: dict[str, list[str]] = {}

    def apply_all(self, batches: Sequence[Batch]) -> list[Applied]:
        for batch in batches:
            stored = self.offsets.get(batch.partition)
            if stored is not None and stored != batch.first_offset:
                raise OffsetMismatchError(batch.partition, stored, batch.first_offset)
        return [self._apply(batch) for batch in batches]

    def _apply(self, batch: Batch) -> Applied:
        taken = offered = deleted = 0
        for user_id, event in batch.changes:
            if event is None:
                known = self.users.pop(user_id, None) is not None
                deleted += known
                self.deleted += [user_id] * known
            else:
                offered += 1
                taken += self.users.setdefault(user_id, ReferenceHistory()).add(event, self.limit, self.stride)
        self.offsets[batch.partition] = batch.next_offset
        self.touch({batch.partition: batch.as_of})
        return Applied(taken, offered - taken, deleted)

    def offset(self, partition: int) -> int | None:
        return self.offsets.get(partition)

    def as_of(self) -> float | None:
        return min(self.moments.values(), default=None)

    def touch(self, as_of: dict[int, float]) -> None:
        for partition, moment in as_of.items():
            self.moments[partition] = max(moment, self.moments.get(partition, moment))

    def bind(self, log_id: str, vocabulary: Vocabulary) -> None:
        if self.log_id not in (None, log_id):
            raise StoreMismatchError(f"tied to {self.log_id}")
        for kind, names in (("actions", vocabulary.action_index), ("surfaces", vocabulary.surface_index)):
            check_names(kind, self.names.get(kind, []), list(names))
            self.names[kind] = list(names)
        self.log_id = log_id

    def read(self, user_ids: Sequence[str]) -> list[History | None]:
        found = [self.users.get(user_id) for user_id in user_ids]
        return [user and History.of(user.window(), len(user.events)) for user in found]

    def deletions(self, since: int) -> Deletions:
        return Deletions(len(self.deleted), self.deleted[since:])

    def count(self) -> int:
        return len(self.users)

    def close(self) -> None:
        pass
