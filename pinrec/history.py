"""A user's history: bounded, ordered by (timestamp, event id), free of duplicates, packed into bytes.

Layout of the packed form (little endian):

    header   <8sQI>  magic, events ever admitted, n
    rows     n x ROW (24 bytes each)
    events   the n event ids, joined by newlines, behind their length <I>
    items    the n item ids (for a query: its text), joined by newlines

Ids hold no control characters (the wire schema refuses them), so a newline separates.
Appending to the end, the common case, is a few slices of bytes: no event is decoded.
"""

import struct
from collections.abc import Sequence
from functools import cached_property
from typing import Final, NamedTuple

import numpy as np

ROW: Final = np.dtype(
    [
        ("timestamp", "<f8"),
        ("item_hash", "<u8"),
        ("action", "<u2"),
        ("surface", "<u2"),
        ("is_query", "u1"),
        ("pad", "V3"),
    ]
)
_HEADER: Final = struct.Struct("<8sQI")
_LENGTH: Final = struct.Struct("<I")
_ROW: Final = struct.Struct("<dQHHB3x")
_TIMESTAMP: Final = struct.Struct("<d")
_MAGIC: Final = b"PINRECH1"
assert ROW.itemsize == _ROW.size


class HistoryEvent(NamedTuple):
    """One event as histories hold it; action and surface are vocabulary indices."""

    timestamp: float
    event_id: str
    item_id: str
    item_hash: int
    action: int
    surface: int
    is_query: bool

    @property
    def order(self) -> tuple[float, str]:
        """What histories are sorted by."""
        return (self.timestamp, self.event_id)


def window_start(total: int, limit: int, stride: int) -> int:
    """First position of the window of a user who ever had `total` events.

    A pure function of `total`, moving on by `stride`: between two moves a history only
    grows at its end, so keys and values computed for it stay valid, and whoever encodes
    from scratch gets the same window.
    """
    if total <= limit:
        return 0
    return -(-(total - limit) // stride) * stride


class History:
    """A packed history, read without decoding more than is asked for. Arrays have length n."""

    __slots__ = ("__dict__", "_events_at", "_items_at", "count", "packed", "total")

    def __init__(self, packed: bytes) -> None:
        self.total: int
        self.count: int
        magic, self.total, self.count = _HEADER.unpack_from(packed)
        if magic != _MAGIC:
            raise ValueError("not a packed history (or one of another format)")
        self.packed = packed
        self._events_at = _HEADER.size + self.count * ROW.itemsize
        (length,) = _LENGTH.unpack_from(packed, self._events_at)
        self._items_at = self._events_at + _LENGTH.size + length

    @classmethod
    def of(cls, events: Sequence[HistoryEvent], total: int | None = None) -> "History":
        """Pack events that are already in order and distinct."""
        return cls(_pack(events, len(events) if total is None else total))

    @classmethod
    def of_rows(cls, rows: np.ndarray, item_ids: Sequence[str] | None = None) -> "History":
        """A history of ROW records [n], without event ids; item ids are needed only for the texts of queries."""
        blank = "\n" * max(0, len(rows) - 1)
        items = blank if item_ids is None else "\n".join(item_ids)
        header = _HEADER.pack(_MAGIC, len(rows), len(rows))
        return cls(b"".join((header, rows.tobytes(), _LENGTH.pack(len(blank)), blank.encode(), items.encode())))

    def __len__(self) -> int:
        return self.count

    @property
    def rows(self) -> np.ndarray:
        """Structured array [n] of ROW: timestamp (s), item_hash, action, surface, is_query."""
        return np.frombuffer(self.packed, ROW, self.count, _HEADER.size)

    @cached_property
    def item_ids(self) -> list[str]:
        """Item ids, oldest first; for a query event its text."""
        return self.packed[self._items_at :].decode().split("\n") if self.count else []

    @cached_property
    def event_ids(self) -> list[str]:
        """Event ids, oldest first."""
        heap = self.packed[self._events_at + _LENGTH.size : self._items_at]
        return heap.decode().split("\n") if self.count else []

    @property
    def last_event_id(self) -> str:
        """The newest event's id, without decoding the others'; empty where there is no event."""
        first_at = self._events_at + _LENGTH.size
        last_at = max(first_at, self.packed.rfind(b"\n", first_at, self._items_at) + 1)
        return self.packed[last_at : self._items_at].decode()

    def events(self) -> list[HistoryEvent]:
        """All events, decoded."""
        return [
            HistoryEvent(timestamp, event_id, item_id, item_hash, action, surface, bool(is_query))
            for (timestamp, item_hash, action, surface, is_query, _), event_id, item_id in zip(
                self.rows.tolist(), self.event_ids, self.item_ids, strict=True
            )
        ]


def _pack(events: Sequence[HistoryEvent], total: int) -> bytes:
    event_heap = "\n".join([e.event_id for e in events]).encode()
    return b"".join(
        (
            _HEADER.pack(_MAGIC, total, len(events)),
            *[_ROW.pack(e.timestamp, e.item_hash, e.action, e.surface, e.is_query) for e in events],
            _LENGTH.pack(len(event_heap)),
            event_heap,
            "\n".join([e.item_id for e in events]).encode(),
        )
    )


def merge(packed: bytes | None, events: Sequence[HistoryEvent], limit: int, stride: int) -> tuple[bytes, int]:
    """Put new events in their places.

    Args:
        packed: the history so far, or None.
        events: new events in any order, duplicates allowed.
        limit, stride: the window (see `window_start`).

    Returns:
        the new packed history and how many events it took. A duplicate (same event id) is
        dropped; so is an event older than a window that has already moved on.
    """
    if packed is None and len(events) == 1:
        return _pack(events, 1), 1
    appended = _append(packed, events, limit) if packed is not None else None
    if appended is not None:
        return appended, len(events)
    kept, dropped = [], 0
    if packed is not None:
        history = History(packed)
        kept = history.events()
        dropped = history.total - len(kept)
    known = {e.event_id for e in kept}
    oldest = kept[0].order if kept and dropped else None
    taken = 0
    for event in sorted(events, key=lambda e: e.order):
        if event.event_id in known or (oldest is not None and event.order < oldest):
            continue
        known.add(event.event_id)
        kept.append(event)
        taken += 1
    if packed is not None and not taken:
        return packed, 0
    kept.sort(key=lambda e: e.order)
    total = dropped + len(kept)
    start = window_start(total, limit, stride)
    return _pack(kept[max(0, start - dropped) :], total), taken


def _append(packed: bytes, events: Sequence[HistoryEvent], limit: int) -> bytes | None:
    """The packed history with all events at its end, or None where that is not their place."""
    _, total, count = _HEADER.unpack_from(packed)
    if not count or count + len(events) > limit:
        return None
    events_at = _HEADER.size + count * ROW.itemsize
    (length,) = _LENGTH.unpack_from(packed, events_at)
    heap = packed[events_at + _LENGTH.size : events_at + _LENGTH.size + length]
    (last_timestamp,) = _TIMESTAMP.unpack_from(packed, events_at - ROW.itemsize)
    # UTF-8 sorts as text does, so ids are compared as bytes.
    last_id = heap[heap.rfind(b"\n") + 1 :]
    known = b"\n%b\n" % heap
    rows, event_heap, item_heap = [], [heap], []
    for timestamp, event_id, item_id, item_hash, action, surface, is_query in events:
        id_bytes = event_id.encode()
        line = b"\n" + id_bytes
        if timestamp < last_timestamp or (timestamp == last_timestamp and id_bytes <= last_id):
            return None
        if line + b"\n" in known or line in event_heap:
            return None
        last_timestamp, last_id = timestamp, id_bytes
        rows.append(_ROW.pack(timestamp, item_hash, action, surface, is_query))
        event_heap.append(line)
        item_heap.append(b"\n" + item_id.encode())
    events_heap = b"".join(event_heap)
    return b"".join(
        (
            _HEADER.pack(_MAGIC, total + len(events), count + len(events)),
            packed[_HEADER.size : events_at],
            *rows,
            _LENGTH.pack(len(events_heap)),
            events_heap,
            packed[events_at + _LENGTH.size + length :],
            *item_heap,
        )
    )
