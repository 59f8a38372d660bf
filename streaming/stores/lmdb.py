"""The sequence store of one machine: an LMDB environment that several processes share.

Sub-databases: `users` (user id -> packed history), `offsets` (partition -> next offset and
as-of time), `deleted` (number of the deletion -> user id, the latest ones) and `meta` (format, window and log the
store belongs to).

Writers of several processes take turns at LMDB's own lock, which a killed process gives back;
readers never wait. LMDB must not be shared between machines: its lock is local memory.
"""

import json
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import lmdb

from pinrec.config import Vocabulary
from pinrec.history import History, HistoryEvent, merge
from streaming.stores.base import (
    Applied,
    Batch,
    Deletions,
    OffsetMismatchError,
    SequenceStore,
    StoreMismatchError,
    check_names,
)

_FORMAT: Final = b"1"
_OFFSET: Final = struct.Struct("<qd")
_NEVER_APPLIED: Final = -1
_PARTITION: Final = struct.Struct(">I")
_NUMBER: Final = struct.Struct(">Q")
_DELETIONS: Final = 4_096
"""How many are remembered."""
_LONGEST_KEY: Final = 511
_GIB: Final = 1 << 30
_READER_CHECK_EVERY: Final = 1_024


class StoreFullError(RuntimeError):
    """The store reached its size limit; nothing of the batch was kept."""


class LmdbSequenceStore(SequenceStore):
    """Histories in an LMDB environment.

    Args:
        folder: created where absent.
        limit, stride: the window of every history (see `pinrec.history.window_start`).
        map_gib: most the store may grow to, in GiB. Address space, not disk: the file grows as it fills.
        readonly: refuse writes; for replicas that only read.

    Raises:
        StoreMismatchError: the folder holds histories of another format or window.

    One object per process and folder: LMDB's locks belong to the process. Threads may share it.
    """

    def __init__(self, folder: Path, limit: int, stride: int, map_gib: float = 16.0, readonly: bool = False) -> None:
        self._folder, self._limit, self._stride, self._map_gib = Path(folder), limit, stride, map_gib
        self._writes = 0
        self._open(readonly=False)
        try:
            self._claim()
        except BaseException:
            self._env.close()
            raise
        if readonly:
            self._env.close()
            self._open(readonly=True)

    def _open(self, readonly: bool) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        # metasync=False: a commit flushes its data but not the page that points to it. A machine that loses
        # power may fall back by one whole transaction, offset included, and Kafka then repeats that batch.
        self._env = lmdb.open(
            str(self._folder),
            map_size=int(self._map_gib * _GIB),
            max_dbs=4,
            max_readers=1_024,
            metasync=False,
            readahead=False,
            readonly=readonly,
        )
        # A process that was killed while reading would keep old pages alive for ever.
        self._env.reader_check()
        self._users, self._offsets, self._deleted, self._meta = (
            self._env.open_db(name, create=not readonly) for name in (b"users", b"offsets", b"deleted", b"meta")
        )

    def _claim(self) -> None:
        ours = {b"format": _FORMAT, b"limit": str(self._limit).encode(), b"stride": str(self._stride).encode()}

        def claim(txn: Any) -> None:
            for name, value in ours.items():
                held = txn.get(name, db=self._meta)
                if held is None:
                    txn.put(name, value, db=self._meta)
                elif held != value:
                    raise StoreMismatchError(
                        f"{self._folder}: the sequence store has {name.decode()} {held.decode()}, the settings say "
                        f"{value.decode()}; set it back, or delete the folder and it is rebuilt from Kafka"
                    )

        self._write(claim)

    def apply_all(self, batches: Sequence[Batch]) -> list[Applied]:
        """See `SequenceStore.apply_all`.

        Raises:
            OffsetMismatchError: nothing was changed.
            StoreFullError: nothing was changed.
        """
        applied: list[Applied] = self._write(lambda txn: [self._apply(txn, batch) for batch in batches])
        self._writes += 1
        if self._writes % _READER_CHECK_EVERY == 0:
            self._env.reader_check()
        return applied

    def _apply(self, txn: Any, batch: Batch) -> Applied:
        assert batch.next_offset >= batch.first_offset, "a batch cannot end before it starts"
        stored, held_as_of = self._position(txn, batch.partition)
        if stored is not None and stored != batch.first_offset:
            raise OffsetMismatchError(batch.partition, stored, batch.first_offset)
        waiting: dict[str, list[HistoryEvent]] = {}
        taken = offered = deleted = 0
        for user_id, event in batch.changes:
            if event is not None:
                offered += 1
                events = waiting.get(user_id)
                if events is None:
                    waiting[user_id] = [event]
                else:
                    events.append(event)
            else:
                # Merged although it is then deleted, so that counts don't depend on how a log is cut into batches.
                taken += self._merge(txn, user_id, waiting.pop(user_id, []))
                deleted += self._delete(txn, user_id)
        for user_id, events in waiting.items():
            taken += self._merge(txn, user_id, events)
        self._set_position(txn, batch.partition, batch.next_offset, max(batch.as_of, held_as_of))
        return Applied(taken, offered - taken, deleted)

    def _merge(self, txn: Any, user_id: str, events: list[HistoryEvent]) -> int:
        if not events:
            return 0
        key = user_id.encode()
        packed = txn.get(key, db=self._users)
        merged, taken = merge(packed, events, self._limit, self._stride)
        if taken:
            txn.put(key, merged, db=self._users)
        return taken

    def _delete(self, txn: Any, user_id: str) -> bool:
        deleted: bool = txn.delete(user_id.encode(), db=self._users)
        if deleted:
            _, last = self._remembered(txn)
            txn.put(_NUMBER.pack(last + 1), user_id.encode(), db=self._deleted)
            if last >= _DELETIONS:
                txn.delete(_NUMBER.pack(last + 1 - _DELETIONS), db=self._deleted)
        return deleted

    def _remembered(self, txn: Any) -> tuple[int, int]:
        """Numbers of the first and the last deletion that are remembered; (1, 0) if none was made."""
        with txn.cursor(db=self._deleted) as cursor:
            if not cursor.first():
                return 1, 0
            (first,) = _NUMBER.unpack(cursor.key())
            cursor.last()
            (last,) = _NUMBER.unpack(cursor.key())
            return first, last

    def deletions(self, since: int) -> Deletions:
        """See `SequenceStore.deletions`."""
        with self._env.begin() as txn:
            first, last = self._remembered(txn)
            if since + 1 < first:
                return Deletions(last, None)
            with txn.cursor(db=self._deleted) as cursor:
                later = cursor.iternext(keys=False) if cursor.set_range(_NUMBER.pack(since + 1)) else ()
                return Deletions(last, [user_id.decode() for user_id in later])

    def offset(self, partition: int) -> int | None:
        """See `SequenceStore.offset`."""
        with self._env.begin() as txn:
            return self._position(txn, partition)[0]

    def as_of(self) -> float | None:
        """See `SequenceStore.as_of`."""
        with self._env.begin() as txn, txn.cursor(db=self._offsets) as cursor:
            return min((_OFFSET.unpack(value)[1] for value in cursor.iternext(keys=False)), default=None)

    def touch(self, as_of: dict[int, float]) -> None:
        """See `SequenceStore.touch`."""

        def touch(txn: Any) -> None:
            for partition, moment in as_of.items():
                stored, held = self._position(txn, partition)
                if moment > held:
                    self._set_position(txn, partition, _NEVER_APPLIED if stored is None else stored, moment)

        self._write(touch)

    def bind(self, log_id: str, vocabulary: Vocabulary) -> None:
        """See `SequenceStore.bind`."""

        def bind(txn: Any) -> None:
            held = txn.get(b"log", db=self._meta)
            if held is not None and held != log_id.encode():
                raise StoreMismatchError(
                    f"{self._folder}: the sequence store follows the log {held.decode()}, Kafka now has {log_id}; "
                    "go back to that cluster and topic, or start with another state.root"
                )
            txn.put(b"log", log_id.encode(), db=self._meta)
            for kind, names in (("actions", vocabulary.action_index), ("surfaces", vocabulary.surface_index)):
                known = txn.get(kind.encode(), db=self._meta)
                check_names(kind, json.loads(known) if known else [], list(names))
                txn.put(kind.encode(), json.dumps(list(names)).encode(), db=self._meta)

        self._write(bind)

    def read(self, user_ids: Sequence[str]) -> list[History | None]:
        """See `SequenceStore.read`."""
        with self._env.begin(db=self._users) as txn:
            # LMDB refuses keys of other lengths; the wire refuses such ids, so nobody has them.
            found = [
                txn.get(key) if 0 < len(key) <= _LONGEST_KEY else None for key in (user.encode() for user in user_ids)
            ]
        return [None if packed is None else History(packed) for packed in found]

    def count(self) -> int:
        """See `SequenceStore.count`."""
        with self._env.begin() as txn:
            return int(txn.stat(self._users)["entries"])

    def close(self) -> None:
        """See `SequenceStore.close`."""
        self._env.close()

    def _position(self, txn: Any, partition: int) -> tuple[int | None, float]:
        value = txn.get(_PARTITION.pack(partition), db=self._offsets)
        if value is None:
            return None, float("-inf")
        offset, as_of = _OFFSET.unpack(value)
        return None if offset == _NEVER_APPLIED else offset, as_of

    def _set_position(self, txn: Any, partition: int, offset: int, as_of: float) -> None:
        txn.put(_PARTITION.pack(partition), _OFFSET.pack(offset, as_of), db=self._offsets)

    def _write(self, work: Callable[[Any], Any]) -> Any:
        try:
            with self._env.begin(write=True) as txn:
                return work(txn)
        except lmdb.MapFullError:
            raise StoreFullError(
                f"{self._folder}: the sequence store reached its limit of {self._map_gib:g} GiB; "
                "raise state.map_gib and start again, nothing is lost"
            ) from None
