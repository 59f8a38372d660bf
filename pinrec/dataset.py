"""Events in columns: what training and evaluation read."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from pinrec.config import Vocabulary
from pinrec.hashing import hash_id

REQUIRED = ("user_id", "item_id", "action", "surface", "timestamp")


@dataclass(frozen=True, eq=False)
class EventColumns:
    """n events in log order. A row number is an event's place in this order.

    Attributes:
        user_ids, user: the distinct users, and int32[n] indices into them.
        item_hash: uint64[n], hash of the item id; for a query, of its text with single spaces.
        is_query: bool[n].
        queries, query: the distinct query texts, and int32[n] indices into them, -1 for items.
        action, surface: uint16[n] vocabulary indices.
        timestamp: float64[n], epoch seconds.
        feed: int64[n], one number for each feed view, -1 where unknown.
        arrived: float64[n], epoch seconds at which the log took the event.
    """

    user_ids: list[str]
    user: NDArray[np.int32]
    item_hash: NDArray[np.uint64]
    is_query: NDArray[np.bool_]
    queries: list[str]
    query: NDArray[np.int32]
    action: NDArray[np.uint16]
    surface: NDArray[np.uint16]
    timestamp: NDArray[np.float64]
    feed: NDArray[np.int64]
    arrived: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.user)

    @classmethod
    def of_columns(cls, columns: Mapping[str, Any], vocabulary: Vocabulary) -> Self:
        """Events from columns of equal length.

        Args:
            columns: user_id, item_id, action, surface (text), timestamp (s), and where there are any
                item_type ("item" or "query"), query (text), feed_id (text), arrived (s). A text column is a
                sequence of str or None, a pair (codes, values) with code -1 for None, or anything with
                pyarrow's `dictionary_encode`.
            vocabulary: the declared actions and surfaces.

        Raises:
            ValueError: a column is missing or of another length, or an action or surface is not declared.
        """
        missing = [name for name in REQUIRED if name not in columns]
        if missing:
            raise ValueError(f"{missing[0]}: this column is missing")
        timestamp = _numbers(columns["timestamp"])
        n = len(timestamp)
        user, user_ids = _coded("user_id", columns["user_id"], n)
        item, item_ids = _coded("item_id", columns["item_id"], n)
        hashes = np.fromiter(map(hash_id, [*item_ids, ""]), np.uint64, len(item_ids) + 1)
        item_hash, is_query = hashes[item], np.zeros(n, np.bool_)
        if columns.get("item_type") is not None:
            kind, kinds = _coded("item_type", columns["item_type"], n)
            is_query = np.append(np.array([name == "query" for name in kinds], np.bool_), False)[kind]
        query, queries = np.full(n, -1, np.int32), list[str]()
        if is_query.any():
            texts, queries = _coded("query", columns.get("query", [None] * n), n)
            if (texts[is_query] < 0).any():
                raise ValueError("query: a query event needs its text")
            queries = [" ".join(text.split()) for text in queries]
            query[is_query] = texts[is_query]
            query_hashes = np.fromiter(map(hash_id, queries), np.uint64, len(queries))
            item_hash[is_query] = query_hashes[query[is_query]]
        for name, codes in (("user_id", user), ("item_id", np.where(is_query, 0, item))):
            if (codes < 0).any():
                raise ValueError(f"{name}: row {int(np.argmax(codes < 0))} has none")
        feed = _coded("feed_id", columns["feed_id"], n)[0] if columns.get("feed_id") is not None else np.full(n, -1)
        arrived = _numbers(columns["arrived"]) if columns.get("arrived") is not None else timestamp
        return cls(
            user_ids=user_ids,
            user=user,
            item_hash=item_hash,
            is_query=is_query,
            queries=queries,
            query=query,
            action=_declared("action", columns["action"], vocabulary.action_index, n),
            surface=_declared("surface", columns["surface"], vocabulary.surface_index, n),
            timestamp=timestamp,
            feed=feed.astype(np.int64),
            arrived=arrived,
        )

    def before(self, row: int) -> Self:
        """The first `row` events; ids keep their numbers."""
        return self._rows(slice(None, row))

    def at(self, index: NDArray[np.int64]) -> Self:
        """Some of the events, in the order of `index`; ids keep their numbers."""
        return self._rows(index)

    def _rows(self, which: slice | NDArray[np.int64]) -> Self:
        names = ("user", "item_hash", "is_query", "query", "action", "surface", "timestamp", "feed", "arrived")
        return type(self)(
            user_ids=self.user_ids, queries=self.queries, **{name: getattr(self, name)[which] for name in names}
        )

    def with_sessions(self, gap_s: float) -> Self:
        """The same events with feed views by time: a user's events on one surface without longer pauses.

        Args:
            gap_s: the longest pause within a view, seconds.
        """
        order = np.lexsort((self.timestamp, self.surface, self.user))
        same = (np.diff(self.user[order]) == 0) & (np.diff(self.surface[order].astype(np.int64)) == 0)
        same &= np.diff(self.timestamp[order]) <= gap_s
        feed = np.empty(len(self), np.int64)
        feed[order] = np.concatenate(([0], np.cumsum(~same))) if len(self) else order
        return replace(self, feed=feed)

    def engaged(self, vocabulary: Vocabulary) -> NDArray[np.bool_]:
        """bool[n]: engaging actions on items, which is what the model learns to predict."""
        engaging = np.array([action.engaging for action in vocabulary.actions])
        return engaging[self.action] & ~self.is_query


def _numbers(column: Any) -> NDArray[np.float64]:
    if hasattr(column, "to_numpy"):
        column = column.to_numpy()
    return np.ascontiguousarray(column, np.float64)


def _coded(name: str, column: Any, n: int) -> tuple[NDArray[np.int32], list[str]]:
    """Codes int32[n] (-1 for None and the empty text) and the distinct values, in order of appearance."""
    codes, values = _dictionary(column)
    if len(codes) != n:
        raise ValueError(f"{name}: {len(codes)} values; the timestamp column has {n}")
    if "" in values:
        codes = np.where(codes == values.index(""), -1, codes).astype(np.int32)
    return codes, values


def _dictionary(column: Any) -> tuple[NDArray[np.int32], list[str]]:
    if isinstance(column, tuple) and len(column) == 2 and isinstance(column[0], np.ndarray):
        return column[0].astype(np.int32), list(column[1])
    if hasattr(column, "dictionary_encode"):
        whole = column.combine_chunks() if hasattr(column, "combine_chunks") else column
        encoded = whole if hasattr(whole, "indices") else whole.dictionary_encode()
        return encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(
            np.int32
        ), encoded.dictionary.to_pylist()
    values: Iterable[Any] = column.tolist() if isinstance(column, np.ndarray) else column
    index: dict[str, int] = {}
    codes = np.fromiter((-1 if v is None else index.setdefault(v, len(index)) for v in values), np.int32, len(column))
    return codes, list(index)


def _declared(name: str, column: Any, index: Mapping[str, int], n: int) -> NDArray[np.uint16]:
    codes, values = _coded(name, column, n)
    if (codes < 0).any():
        raise ValueError(f"{name}: row {int(np.argmax(codes < 0))} has none")
    unknown = [value for value in (values[i] for i in np.unique(codes)) if value not in index]
    if unknown:
        raise ValueError(f"{name}: {unknown[0]!r} is not declared; declared are {', '.join(index)}")
    return np.array([index.get(value, 0) for value in values], np.uint16)[codes]
