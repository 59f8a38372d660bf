"""The archive: every applied event as Parquet, what training reads.

    <folder>/date=YYYY-MM-DD/hour=HH/<topic>-<partition>-<first>-<next>.parquet

A file covers the offsets [first, next) of one partition, refused events included (they have no
row, their offsets are covered all the same), so the names alone say how far the archive reaches
and where something is missing. Files are written aside and renamed: writing a range again changes
nothing, and where two writers overlap each offset is read once. A range that Kafka had expired
before it was archived is marked by an empty file whose name ends in `.lost.parquet`.

A deletion of a user is a row whose `deleted` is true; a reader leaves out what the user did
before it, and `purge` takes those rows off the disk.

Writers leave a file every few seconds. `merge` makes one of those of an hour that is over, and later one of a day's:
it lies in the folder of the first, and readers that see it beside its parts read each offset once all the same.
"""

import contextlib
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

SCHEMA: Final = pa.schema(
    [
        ("partition", pa.int32()),
        ("offset", pa.int64()),
        ("arrived", pa.float64()),  # Kafka's timestamp of the record, epoch s
        ("event_id", pa.string()),
        ("user_id", pa.string()),
        ("item_id", pa.string()),
        ("action", pa.string()),
        ("surface", pa.string()),
        ("timestamp", pa.float64()),
        ("item_type", pa.string()),
        ("query", pa.string()),
        ("feed_id", pa.string()),
        ("request_id", pa.string()),
        ("position", pa.int64()),
        ("deleted", pa.bool_()),
    ]
)
ROW_FIELDS: Final = tuple(SCHEMA.names[1:])
"""The fields of one row given to `RowBuffer.add`, in this order (the partition is the buffer's own)."""

_NAME: Final = re.compile(
    r"(?P<topic>.+)-(?P<partition>\d{5})-(?P<first>\d{20})-(?P<next>\d{20})(?P<lost>\.lost)?\.parquet"
)
_REPEATED: Final = ["user_id", "item_id", "action", "surface", "item_type", "query", "feed_id", "request_id"]
"""Columns whose values recur, worth a dictionary."""

_TRIES: Final = 5
_KEEP_DELETIONS_S: Final = 86_400.0
_ABANDONED_S: Final = 3_600.0
_OVER_S: Final = 600.0
"""So long after an hour, or a day, its files are merged."""
_MERGED_AT_ONCE: Final = 1_000
_MERGED_ROWS: Final = 250_000
"""Offsets that a merged file covers, at most: it is in memory while it is made."""


@dataclass(frozen=True, slots=True, order=True)
class Span:
    """One file, by its name."""

    partition: int
    first: int
    next: int
    topic: str
    lost: bool
    path: Path


@dataclass(frozen=True, slots=True)
class Gap:
    """Offsets [first, next) of a partition that the archive does not hold."""

    topic: str
    partition: int
    first: int
    next: int
    expired: bool
    """True: Kafka had dropped them before they were read. False: a file is missing."""


class ArchiveError(RuntimeError):
    """The archive cannot be read as asked."""


class RowBuffer:
    """Rows of one partition on their way to a file: columns, so that a row costs no object of its own."""

    def __init__(self, partition: int, first: int, since: float) -> None:
        self.partition, self.first, self.next, self.since = partition, first, first, since
        self.rows: list[tuple[Any, ...]] = []
        self.add = self.rows.append

    def __len__(self) -> int:
        return len(self.rows)

    def table(self) -> pa.Table:
        """All rows, in offset order."""
        columns: list[Any] = list(zip(*self.rows, strict=True)) if self.rows else [()] * len(ROW_FIELDS)
        partition = pa.array(np.full(len(self.rows), self.partition, np.int32))
        return pa.Table.from_arrays(
            [partition, *(pa.array(c, SCHEMA.field(name).type) for name, c in zip(ROW_FIELDS, columns, strict=True))],
            schema=SCHEMA,
        )


class Archive:
    """All applied events below one folder. Writers and readers may be many, in any process.

    Args:
        folder: created by the first write.
        clock: epoch seconds; replaced in tests.
    """

    def __init__(self, folder: Path, clock: Any = time.time) -> None:
        self.folder = Path(folder)
        self._clock = clock
        self._purged: set[tuple[str, int, int]] = set()
        self._deleted: dict[Path, list[dict[str, Any]]] = {}

    def write(self, topic: str, rows: RowBuffer) -> Path:
        """Write the buffer as one file that covers [rows.first, rows.next). Durable when it returns."""
        return self._write(topic, rows.partition, rows.first, rows.next, rows.table())

    def mark_lost(self, topic: str, partition: int, first: int, next_offset: int) -> Path:
        """Note that Kafka no longer had [first, next_offset) when it was to be archived."""
        return self._write(topic, partition, first, next_offset, SCHEMA.empty_table(), ".lost")

    def position(self, topic: str, partition: int) -> int | None:
        """End of the contiguous coverage; None where nothing is archived."""
        return self.positions(topic).get(partition)

    def positions(self, topic: str) -> dict[int, int]:
        """End of the contiguous coverage of each partition that has any."""
        ends: dict[int, int] = {}
        for span in self._spans():
            if span.topic == topic and span.first <= ends.setdefault(span.partition, span.first):
                ends[span.partition] = max(ends[span.partition], span.next)
        return ends

    def ends(self) -> dict[int, int]:
        """The end of each partition's last file, gaps or not."""
        ends: dict[int, int] = {}
        for span in self._spans():
            ends[span.partition] = max(ends.get(span.partition, 0), span.next)
        return ends

    def gaps(self) -> list[Gap]:
        """Offsets that are missing between the first and the last archived one of each partition."""
        gaps = []
        ends: dict[tuple[str, int], int] = {}
        for span in self._spans():
            end = ends.get((span.topic, span.partition), span.first)
            if span.first > end:
                gaps.append(Gap(span.topic, span.partition, end, span.first, expired=False))
            if span.lost:
                gaps.append(Gap(span.topic, span.partition, span.first, span.next, expired=True))
            ends[span.topic, span.partition] = max(end, span.next)
        return gaps

    def read(
        self,
        after: Mapping[int, int] | None = None,
        columns: Sequence[str] | None = None,
        topic: str | None = None,
    ) -> pa.Table:
        """Events by the time they arrived; those of one partition stay in log order.

        Args:
            after: next offset by partition; only rows from there on are read.
            columns: some of SCHEMA's; None = all but `deleted`.
            topic: needed only where the archive holds several.

        Returns:
            table without deletions and without what their users did before them.

        Raises:
            ArchiveError: several topics and none named.
        """
        names = [name for name in SCHEMA.names if name != "deleted"] if columns is None else list(columns)
        for attempt in range(_TRIES):
            try:
                table = self._read(after or {}, names, topic)
            except FileNotFoundError:  # a purge took a file away between listing and opening; look again
                if attempt == _TRIES - 1:
                    raise
            else:
                return _in_arrival_order(_without_deleted(table)).select(names)
        raise AssertionError("unreachable")

    def deletions(self, after: Mapping[int, int] | None = None) -> list[str]:
        """Users who were deleted, by rows from `after` on: what a reader who keeps rows must forget."""
        table = self._read(after or {}, ["deleted"], None)
        return list(dict.fromkeys(table.filter(table["deleted"])["user_id"].to_pylist()))

    def purge(self, keep_deletions_s: float = _KEEP_DELETIONS_S) -> int:
        """Take the rows of deleted users off the disk.

        The deletions themselves stay for `keep_deletions_s`: until then they hide rows that a
        member who lost the partition may still write.

        Returns:
            the number of rows taken away.
        """
        spans = [span for span in self._spans() if not span.lost]
        # A file does not change but by a purge, so each is opened for this once, however long the archive grows.
        known_files, self._deleted = self._deleted, {}
        deletions: dict[tuple[str, int], dict[str, int]] = {}
        old: set[tuple[str, int, int]] = set()
        for span in spans:
            rows = known_files.get(span.path)
            if rows is None:
                rows = _load(span.path, ["offset", "user_id", "arrived"], pc.field("deleted")).to_pylist()
            self._deleted[span.path] = rows
            for row in rows:
                last = deletions.setdefault((span.topic, span.partition), {})
                last[row["user_id"]] = max(row["offset"], last.get(row["user_id"], -1))
                if row["arrived"] < self._clock() - keep_deletions_s:
                    old.add((span.topic, span.partition, row["offset"]))
        known = {(t, p, offset) for (t, p), users in deletions.items() for offset in users.values()}
        if known == self._purged and not old:
            return 0
        removed = 0
        for span in spans:
            last = deletions.get((span.topic, span.partition), {})
            if any(span.first <= offset for offset in last.values()):
                removed += self._purge_file(span, last, old)
        self._purged = known - old
        for span in spans:
            if any((span.topic, span.partition, row["offset"]) in old for row in self._deleted[span.path]):
                del self._deleted[span.path]  # by now it holds them no more
        self._sweep()
        return removed

    def merge(self) -> int:
        """Make few files of the many that lie next to each other: one of each hour that is over, then one of each day.

        For one process at a time. A large backlog takes several calls, as who merges has other things to do.

        Returns:
            the number of files that there are less.
        """
        now = time.gmtime(self._clock() - _OVER_S)
        today, this_hour = time.strftime("date=%Y-%m-%d", now), time.strftime("hour=%H", now)
        runs: dict[tuple[str, int, str, str], list[Span]] = {}
        for span in self._spans():
            date, hour = span.path.parts[-3:-1]
            if not span.lost and (date, hour) < (today, this_hour):
                runs.setdefault((span.topic, span.partition, date, hour if date == today else ""), []).append(span)
        gone = 0
        for part in (part for run in runs.values() for part in _side_by_side(run)):
            gone += self._merge(part)
            if gone >= _MERGED_AT_ONCE:
                break
        return gone

    def _merge(self, spans: Sequence[Span]) -> int:
        """Write the rows of a run of files as one, then take the files away."""
        end = spans[0].first
        tables: list[pa.Table] = []
        for span in spans:
            if span.next > end or not tables:
                table = _load(span.path)
                tables.append(table.filter(pc.field("offset") >= end))
                end = max(end, span.next)
        path = spans[0].path.with_name(_name(spans[0].topic, spans[0].partition, spans[0].first, end))
        _write_aside(pa.concat_tables(tables), path)
        for span in spans:
            if span.path != path:
                span.path.unlink(missing_ok=True)
        return len(spans) - 1

    def _sweep(self) -> None:
        """Take away what a killed writer left half written."""
        for path in self.folder.glob("date=*/hour=*/.*.parquet.*"):
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_mtime < time.time() - _ABANDONED_S:
                    path.unlink()

    def _purge_file(self, span: Span, last: Mapping[str, int], old: set[tuple[str, int, int]]) -> int:
        users = _load(span.path, ["user_id", "offset", "deleted"]).to_pydict()
        keep = np.array(
            [
                (span.topic, span.partition, offset) not in old if deleted else offset > last.get(user_id, -1)
                for user_id, offset, deleted in zip(users["user_id"], users["offset"], users["deleted"], strict=True)
            ],
            bool,
        )
        if keep.all():
            return 0
        table = _load(span.path)
        _write_aside(table.filter(pa.array(keep)), span.path)
        return int(np.count_nonzero(~keep & ~np.array(users["deleted"], bool)))

    def _write(self, topic: str, partition: int, first: int, next_offset: int, table: pa.Table, mark: str = "") -> Path:
        assert 0 <= first <= next_offset, "a file cannot end before it starts"
        now = time.gmtime(self._clock())
        folder = self.folder / time.strftime("date=%Y-%m-%d", now) / time.strftime("hour=%H", now)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / _name(topic, partition, first, next_offset, mark)
        _write_aside(table, path)
        return path

    def _spans(self) -> list[Span]:
        """The files, by partition and offset."""
        # Folders are listed one after the other: files of one may go while those that hold their rows come in another.
        found = sorted(self._files())
        while (again := sorted(self._files())) != found:
            found = again
        return found

    def _files(self) -> Iterator[Span]:
        for path in self.folder.glob("date=*/hour=*/*.parquet"):
            match = _NAME.fullmatch(path.name)
            if match is not None:
                yield Span(
                    int(match["partition"]),
                    int(match["first"]),
                    int(match["next"]),
                    match["topic"],
                    match["lost"] is not None,
                    path,
                )

    def _read(self, after: Mapping[int, int], columns: Sequence[str], topic: str | None) -> pa.Table:
        spans = [span for span in self._spans() if topic in (None, span.topic)]
        if len(topics := {span.topic for span in spans}) > 1:
            raise ArchiveError(f"{self.folder} holds the topics {', '.join(sorted(topics))}; say which to read")
        needed = list(dict.fromkeys([*columns, "partition", "offset", "arrived", "user_id", "deleted"]))
        schema = pa.schema([SCHEMA.field(name) for name in needed])
        tables = [schema.empty_table()]
        covered: dict[int, int] = {}
        for span in spans:
            start = max(covered.get(span.partition, 0), after.get(span.partition, 0))
            if span.lost or span.next <= start:
                continue
            covered[span.partition] = span.next
            table = _load(span.path, needed)
            if span.first < start:
                table = table.filter(pc.field("offset") >= start)
            tables.append(table)
        return pa.concat_tables(tables)


def _name(topic: str, partition: int, first: int, next_offset: int, mark: str = "") -> str:
    return f"{topic}-{partition:05d}-{first:020d}-{next_offset:020d}{mark}.parquet"


def _side_by_side(spans: Sequence[Span]) -> Iterator[list[Span]]:
    """Runs of at least two files without a gap between them, of no more offsets together than a file is to cover."""
    run: list[Span] = []
    end = 0
    for span in sorted(spans):
        if run and (span.first > end or max(end, span.next) - run[0].first > _MERGED_ROWS):
            if len(run) > 1:
                yield run
            run = []
        run.append(span)
        end = max(end, span.next) if len(run) > 1 else span.next
    if len(run) > 1:
        yield run


def _load(path: Path, columns: Sequence[str] | None = None, rows: pc.Expression | None = None) -> pa.Table:
    """A file, opened once: by its name pyarrow opens it several times, and a purge may replace it in between."""
    with path.open("rb") as file:
        return pq.read_table(file, columns=columns, filters=rows)


def _write_aside(table: pa.Table, path: Path) -> None:
    aside = path.with_name(f".{path.name}.{os.getpid()}.{time.monotonic_ns()}")
    try:
        pq.write_table(table, aside, compression="zstd", use_dictionary=_REPEATED, write_statistics=False)
        with aside.open("rb") as file:
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _without_deleted(table: pa.Table) -> pa.Table:
    deletions = table.filter(table["deleted"])
    if not len(deletions):
        return table
    last: dict[str, tuple[int, int, float]] = {}
    for user_id, partition, offset, arrived in zip(*_columns(deletions, _PLACE), strict=True):
        held = last.get(user_id)
        if held is None or _precedes(held, (partition, offset, arrived)):
            last[user_id] = (partition, offset, arrived)
    keep = ~table["deleted"].to_numpy()
    touched = np.flatnonzero(pc.is_in(table["user_id"], pa.array(list(last))).to_numpy())
    for i, user_id, *place in zip(touched.tolist(), *_columns(table.take(touched), _PLACE), strict=True):
        keep[i] &= _precedes(last[user_id], tuple(place))
    return table.filter(pa.array(keep))


_PLACE: Final = ("user_id", "partition", "offset", "arrived")


def _columns(table: pa.Table, names: Sequence[str]) -> list[list[Any]]:
    return [table[name].to_pylist() for name in names]


def _precedes(one: tuple[int, int, float], other: tuple[int, int, float]) -> bool:
    """Whether one (partition, offset, arrived) of a user lies before another of the same user."""
    if one[0] == other[0]:
        return one[1] < other[1]
    # A user changes partition only when the topic is given more of them; time decides then.
    return one[2] < other[2]


def _in_arrival_order(table: pa.Table) -> pa.Table:
    """Sorted by arrival; producers' clocks may disagree, so a partition's time never runs backwards here."""
    partition, offset = table["partition"].to_numpy(), table["offset"].to_numpy()
    arrived = table["arrived"].to_numpy().copy()
    for number in np.unique(partition):
        rows = np.flatnonzero(partition == number)
        rows = rows[np.argsort(offset[rows], kind="stable")]
        arrived[rows] = np.maximum.accumulate(arrived[rows])
    return table.take(np.lexsort((offset, partition, arrived)))
