"""Reading logs of events in the plain form: the fields of UserEvent as columns.

A log is read whole into Arrow columns, checked column by column, and put in the order of its timestamps.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from pinrec.config import Action, Vocabulary
from streaming.log_files import LogError, line_of, read_columns
from streaming.schema import MAX_FUTURE_S, UserEvent

_FIELDS: Final[dict[str, pa.DataType]] = {
    "event_id": pa.string(),
    "user_id": pa.string(),
    "item_id": pa.string(),
    "action": pa.string(),
    "surface": pa.string(),
    "timestamp": pa.float64(),
    "item_type": pa.string(),
    "query": pa.string(),
    "feed_id": pa.string(),
    "request_id": pa.string(),
    "position": pa.int64(),
}
_REQUIRED: Final = ("user_id", "item_id", "action", "surface", "timestamp")
_IDS: Final = ("event_id", "user_id", "item_id", "feed_id", "request_id")
_NAME: Final = r"^[A-Za-z0-9_.:-]{1,64}$"
_SHOWN_PER_CHECK: Final = 10

NOT_ENGAGING: Final = frozenset({"impression", "skip", "hide", "hate", "dislike", "not_interested", "view", "search"})
"""Names of actions that, in a log without a declaration, are taken to be no engagement."""


@dataclass(frozen=True)
class Log:
    """Checked events in the order of their timestamps; events of the same time keep the order of the file.

    Args:
        name: of the log, the same wherever the file lies; begins the ids of events that have none.
        table: columns of UserEvent fields, those the file has.
        rows: [N] the row of the file that each event was.
    """

    name: str
    table: pa.Table
    rows: np.ndarray[Any, np.dtype[np.int64]] = field(repr=False)

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[UserEvent]:
        has_ids = "event_id" in self.table.column_names
        start = 0
        for batch in self.table.to_batches(max_chunksize=10_000):
            rows = self.rows[start : start + len(batch)].tolist()
            start += len(batch)
            for row, values in zip(rows, batch.to_pylist(), strict=True):
                if not has_ids or values["event_id"] is None:
                    # From name and row alone: a log that is published twice counts once.
                    values["event_id"] = f"{self.name}:{row:012d}"
                yield UserEvent(**values)

    @property
    def timestamps(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """[N] epoch seconds, ascending."""
        return np.asarray(self.table["timestamp"].to_numpy())

    def slice(self, start: int, stop: int | None = None) -> "Log":
        """Events `start` to `stop`, as Python slices count."""
        first, last, _ = slice(start, stop).indices(len(self))
        return Log(self.name, self.table.slice(first, max(0, last - first)), self.rows[first:last])

    def split(self, fraction: float) -> "tuple[Log, Log]":
        """The earlier `fraction` (0 to 1) and the rest."""
        if not 0 <= fraction <= 1:
            raise ValueError(f"fraction: {fraction} must be from 0 to 1")
        cut = round(len(self) * fraction)
        return self.slice(0, cut), self.slice(cut)


@dataclass(frozen=True, slots=True)
class LogProblem:
    """One row that cannot be taken."""

    row: int
    line: int
    column: str
    reason: str


@dataclass(frozen=True)
class LogReport:
    """What a log holds. `problems` lists the first rows at fault, in file order; `bad_rows` counts them all."""

    rows: int
    bad_rows: int
    users: int
    items: int
    actions: dict[str, int]
    surfaces: dict[str, int]
    first_timestamp: float | None
    last_timestamp: float | None
    in_order: bool
    problems: list[LogProblem]


def read_log(path: Path, columns: Mapping[str, str] | None = None, clock: Callable[[], float] = time.time) -> Log:
    """The log at `path`.

    Args:
        path: CSV or JSONL, both also .gz, or Parquet.
        columns: the file's name -> ours, where a column is called otherwise.
        clock: epoch seconds; a timestamp more than five minutes later is refused.

    Raises:
        LogError: the first fault, with file, line and column, and the remedy.
    """
    path = Path(path)
    table, checks = _read(path, columns or {}, clock)
    problems = checks.first()
    if problems:
        first = problems[0]
        raise LogError(path, first.reason, first.row, first.column)
    rows = np.arange(len(table), dtype=np.int64)
    timestamps = table["timestamp"].to_numpy()
    if np.any(timestamps[1:] < timestamps[:-1]):
        rows = np.argsort(timestamps, kind="stable").astype(np.int64)
        table = table.take(rows)
    return Log(_log_name(path), table, rows)


def validate_log(
    path: Path,
    columns: Mapping[str, str] | None = None,
    problems: int = 20,
    clock: Callable[[], float] = time.time,
) -> LogReport:
    """Counts, and the first rows that cannot be taken.

    Raises:
        LogError: it cannot be read at all: no such file or column, or a line that cannot be parsed.
    """
    path = Path(path)
    table, checks = _read(path, columns or {}, clock)
    timestamps = table["timestamp"].to_numpy(zero_copy_only=False)
    known = timestamps[~np.isnan(timestamps)]
    return LogReport(
        rows=len(table),
        bad_rows=int(checks.bad.sum()),
        users=pc.count_distinct(table["user_id"]).as_py(),
        items=pc.count_distinct(table["item_id"]).as_py(),
        actions=_counts(table["action"]),
        surfaces=_counts(table["surface"]),
        first_timestamp=float(known.min()) if len(known) else None,
        last_timestamp=float(known.max()) if len(known) else None,
        in_order=bool(np.all(known[1:] >= known[:-1])),
        problems=checks.first()[:problems],
    )


def derive_vocabulary(log: Log) -> Vocabulary:
    """The log's actions and surfaces, the frequent first.

    Well-known names of actions that are no engagement (`NOT_ENGAGING`) are declared so, unless nothing else is left.

    Raises:
        ValueError: the log is empty.
    """
    if not len(log):
        raise ValueError("the log holds no event to take actions and surfaces from; declare them in the settings")
    actions = list(_counts(log.table["action"]))
    all_engage = all(name in NOT_ENGAGING for name in actions)
    return Vocabulary(
        actions=tuple(Action(name=name, engaging=all_engage or name not in NOT_ENGAGING) for name in actions),
        surfaces=tuple(_counts(log.table["surface"])),
    )


class _Checks:
    """Collects the rows at fault."""

    def __init__(self, path: Path, size: int, theirs: Mapping[str, str]) -> None:
        self._path, self._theirs = path, theirs
        self.bad = np.zeros(size, dtype=np.bool_)
        self._found: list[LogProblem] = []

    def refuse(self, faulty: Any, column: str, reason: str) -> None:
        """Refuse the rows where `faulty` [N] holds; unknown (null) is not faulty."""
        if isinstance(faulty, pa.ChunkedArray | pa.Array):
            faulty = pc.fill_null(faulty, False).to_numpy(zero_copy_only=False)
        self.bad |= faulty
        for row in np.flatnonzero(faulty)[:_SHOWN_PER_CHECK].tolist():
            self._found.append(LogProblem(row, line_of(self._path, row), self._theirs.get(column, column), reason))

    def first(self) -> list[LogProblem]:
        """The first problems of each check, in file order."""
        return sorted(self._found, key=lambda problem: problem.row)


def _read(path: Path, columns: Mapping[str, str], clock: Callable[[], float]) -> tuple[pa.Table, _Checks]:
    raw = read_columns(path, columns, _FIELDS)
    required = [name for name in _REQUIRED if name != "item_id" or "query" not in raw.column_names]
    missing = [name for name in required if name not in raw.column_names]
    if missing:
        raise LogError(
            path,
            f"has no column {' or '.join(missing)}; if it is called otherwise, map it: --columns theirs={missing[0]}",
        )
    checks = _Checks(path, len(raw), {ours: theirs for theirs, ours in columns.items()})
    found: dict[str, Any] = {}
    for name in raw.column_names:
        if name == "timestamp":
            found[name] = _timestamps(raw[name], checks, clock() + MAX_FUTURE_S)
        elif name == "position":
            found[name] = _positions(raw[name], checks)
        else:
            found[name] = _texts(raw[name], name, checks)
    found.setdefault("item_id", pa.nulls(len(raw), pa.string()))
    _check_names(found, checks)
    _check_subjects(found, len(raw), checks)
    return pa.table(found), checks


def _texts(cells: pa.ChunkedArray, name: str, checks: _Checks) -> pa.ChunkedArray:
    """Text; an empty cell is null."""
    if pa.types.is_floating(cells.type):
        # A column of whole numbers with holes comes as floats.
        whole = pc.cast(cells, pa.int64(), safe=False)
        checks.refuse(pc.not_equal(pc.cast(whole, cells.type), cells), name, "must be text or a whole number")
        cells = whole
    elif pa.types.is_nested(cells.type):
        checks.refuse(pc.is_valid(cells), name, "must be text or a whole number")
        cells = pa.chunked_array([pa.nulls(len(cells), pa.string())])
    text = pc.cast(cells, pa.string())
    text = pc.if_else(pc.equal(text, ""), pa.scalar(None, pa.string()), text)
    if name in _IDS:
        checks.refuse(pc.greater(pc.binary_length(text), 256), name, "is longer than 256 bytes; use a hash of it")
        checks.refuse(
            pc.match_substring_regex(text, r"[\x00-\x1f\x7f]"), name, "holds control characters; leave them out"
        )
    if name == "query":
        checks.refuse(pc.greater(pc.utf8_length(text), 512), name, "is longer than 512 characters; shorten it")
    return text


def _timestamps(cells: pa.ChunkedArray, checks: _Checks, latest: float) -> pa.ChunkedArray:
    """Epoch seconds; NaN where a cell is no time."""
    if pa.types.is_timestamp(cells.type):
        seconds = np.asarray(pc.cast(cells.cast(pa.timestamp("us")), pa.int64()).to_numpy()) / 1e6
    elif pa.types.is_integer(cells.type) or pa.types.is_floating(cells.type):
        seconds = pc.fill_null(pc.cast(cells, pa.float64(), safe=False), float("nan")).to_numpy()
    else:
        seconds = _seconds_of_text(pc.cast(cells, pa.string()))
    with np.errstate(invalid="ignore"):
        unknown = ~np.isfinite(seconds)
        negative, milliseconds = seconds < 0, seconds > 1e11
        future = (seconds > latest) & ~milliseconds
    form = "must be epoch seconds, or an RFC 3339 time such as 2026-01-31T12:00:00Z"
    checks.refuse(unknown, "timestamp", form)
    checks.refuse(negative, "timestamp", "must not be negative; " + form)
    checks.refuse(milliseconds & ~unknown, "timestamp", "looks like milliseconds; " + form)
    checks.refuse(future & ~unknown, "timestamp", "lies in the future; correct it or leave the row out")
    return pa.chunked_array([seconds])


def _seconds_of_text(text: pa.ChunkedArray) -> np.ndarray[Any, np.dtype[np.float64]]:
    for kind in (pa.float64(), pa.timestamp("us", tz="UTC")):
        try:
            cells = pc.cast(text, kind)
        except pa.ArrowInvalid:
            continue
        if kind != pa.float64():
            cells = pc.divide(pc.cast(pc.cast(cells, pa.int64()), pa.float64()), 1e6)
        return np.array(pc.fill_null(cells, float("nan")).to_numpy())
    return np.array([_seconds_of_cell(cell) for cell in text.to_pylist()], dtype=np.float64)


def _seconds_of_cell(cell: str | None) -> float:
    try:
        return float(cell or "nan")
    except ValueError:
        pass
    try:
        moment = datetime.fromisoformat(cell or "")
    except ValueError:
        return float("nan")
    return moment.timestamp() if moment.tzinfo else float("nan")


def _positions(cells: pa.ChunkedArray, checks: _Checks) -> pa.ChunkedArray:
    reason = "must be a whole number from 0"
    if pa.types.is_string(cells.type):
        cells = pc.if_else(pc.equal(cells, ""), pa.scalar(None, pa.string()), cells)
        whole = pc.match_substring_regex(cells, r"^[0-9]{1,9}$")
        checks.refuse(pc.invert(whole), "position", reason)
        cells = pc.if_else(whole, cells, pa.scalar(None, pa.string()))
    elif not (pa.types.is_integer(cells.type) or pa.types.is_floating(cells.type) or pa.types.is_null(cells.type)):
        checks.refuse(pc.is_valid(cells), "position", reason)
        return pa.chunked_array([pa.nulls(len(cells), pa.int64())])
    positions = pc.cast(cells, pa.int64(), safe=False)
    checks.refuse(pc.less(positions, 0), "position", reason)
    return positions


def _check_names(found: dict[str, Any], checks: _Checks) -> None:
    for name in ("user_id", "action", "surface"):
        checks.refuse(pc.is_null(found[name]), name, "is empty; give it a value, or leave the row out")
    for name in ("action", "surface"):
        reason = "must be a name of at most 64 letters, digits and _ . : -"
        checks.refuse(pc.invert(pc.match_substring_regex(found[name], _NAME)), name, reason)


def _check_subjects(found: dict[str, Any], size: int, checks: _Checks) -> None:
    """An item event names its item, a query event carries its text."""
    is_query: Any = np.zeros(size, dtype=np.bool_)
    if "item_type" in found:
        kinds = pc.fill_null(found["item_type"], "item")
        known = pc.is_in(kinds, pa.array(["item", "query"]))
        checks.refuse(pc.invert(known), "item_type", "must be item or query")
        is_query = pc.equal(kinds, "query").to_numpy(zero_copy_only=False)
        found["item_type"] = kinds
        text = found.get("query", pa.nulls(size, pa.string()))
        blank = pc.fill_null(pc.equal(pc.utf8_trim_whitespace(text), ""), True).to_numpy(zero_copy_only=False)
        checks.refuse(is_query & blank, "query", "is empty; a query event must carry its text")
    nameless = pc.is_null(found["item_id"]).to_numpy(zero_copy_only=False)
    checks.refuse(nameless & ~is_query, "item_id", "is empty; an item event must name its item")


def _counts(cells: pa.ChunkedArray) -> dict[str, int]:
    """Value -> how often it occurs, the frequent first."""
    counts = Counter({pair["values"]: pair["counts"] for pair in pc.value_counts(cells).to_pylist() if pair["values"]})
    return dict(sorted(counts.items(), key=lambda pair: (-pair[1], pair[0])))


def _log_name(path: Path) -> str:
    """The file's name and a hash of its size and first MiB."""
    digest = xxhash.xxh3_64(str(path.stat().st_size).encode())
    with path.open("rb") as file:
        digest.update(file.read(1024 * 1024))
    return f"{path.name.split('.')[0][:24]}-{digest.hexdigest()[:8]}"
