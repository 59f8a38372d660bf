"""The plain log form on disk: CSV, JSONL (both also .gz) and Parquet, as Arrow tables of text and numbers."""

import gzip
import json
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet

FORMS: Final = (".csv", ".csv.gz", ".jsonl", ".jsonl.gz", ".parquet")


class LogError(ValueError):
    """A log that cannot be read.

    Args:
        path: the file.
        reason: what is wrong, and the remedy.
        row: of the file, from 0; the header is no row.
        column: as the file calls it.
    """

    def __init__(self, path: Path, reason: str, row: int | None = None, column: str | None = None) -> None:
        place = "".join(
            (
                "" if row is None else f", {'row' if path.suffix == '.parquet' else 'line'} {line_of(path, row)}",
                "" if column is None else f", column {column}",
            )
        )
        super().__init__(f"{path}{place}: {reason}")
        self.path, self.reason, self.row, self.column = path, reason, row, column


def line_of(path: Path, row: int) -> int:
    """The line of a row, from 1; of Parquet, which has none, the row's number from 1."""
    return row + 2 if form_of(path) == ".csv" else row + 1


def form_of(path: Path) -> str:
    """`.csv`, `.jsonl` or `.parquet`.

    Raises:
        LogError: the name ends in none of the known forms.
    """
    for form in FORMS:
        if path.name.endswith(form):
            return form.removesuffix(".gz")
    raise LogError(path, f"not a known form; name it {', '.join(FORMS)}")


def read_columns(path: Path, columns: Mapping[str, str], fields: Mapping[str, pa.DataType]) -> pa.Table:
    """The columns of a log that we know, under our names and in file order.

    Args:
        path: the file.
        columns: the file's name -> ours, for columns that are called otherwise.
        fields: our names and types. A CSV's cells come as text whatever the type.

    Raises:
        LogError: no such file, an unknown form or mapping, or a row that cannot be parsed.
    """
    form = form_of(path)
    if not path.is_file():
        raise LogError(path, "no such file")
    choice = _Choice(path, columns, fields)
    try:
        table: pa.Table = _READERS[form](path, choice)
    except (pa.ArrowException, gzip.BadGzipFile, zlib.error, EOFError, UnicodeDecodeError) as error:
        raise LogError(path, f"cannot be read as {form[1:]}: {error}") from error
    except OSError as error:
        raise LogError(path, f"cannot be read: {error}") from error
    theirs = choice.of(table.column_names)
    return table.select(list(theirs)).rename_columns(list(theirs.values()))


@dataclass(frozen=True)
class _Choice:
    """Which of a file's columns we take, and what we call them."""

    path: Path
    columns: Mapping[str, str]
    fields: Mapping[str, pa.DataType]

    def of(self, names: list[str]) -> dict[str, str]:
        """The file's name -> ours, for each column we take."""
        for theirs, ours in self.columns.items():
            if theirs not in names:
                raise LogError(self.path, f"has no column {theirs!r} to map; it has {', '.join(names)}")
            if ours not in self.fields:
                raise LogError(self.path, f"cannot map {theirs} to {ours!r}; an event has {', '.join(self.fields)}")
        mapped = set(self.columns.values())
        if len(mapped) < len(self.columns):
            raise LogError(self.path, "two columns are mapped to the same field; map each field once")
        plain = {name: name for name in names if name in self.fields and name not in mapped}
        return plain | dict(self.columns)

    def text(self) -> list[str]:
        """Names, in the file, of the columns that hold text."""
        theirs = {ours: name for name, ours in self.columns.items()}
        return [theirs.get(field, field) for field, kind in self.fields.items() if kind == pa.string()]


def _csv(path: Path, choice: _Choice) -> pa.Table:
    wrong: list[pa.csv.InvalidRow] = []

    def note(row: pa.csv.InvalidRow) -> str:
        wrong.append(row)
        return "skip"

    with pa.csv.open_csv(path, parse_options=pa.csv.ParseOptions(invalid_row_handler=note)) as reader:
        names = list(choice.of(reader.schema.names))

    def read(use_threads: bool) -> pa.Table:
        return pa.csv.read_csv(
            path,
            read_options=pa.csv.ReadOptions(use_threads=use_threads),
            parse_options=pa.csv.ParseOptions(invalid_row_handler=note),
            convert_options=pa.csv.ConvertOptions(
                include_columns=names, column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False
            ),
        )

    table = read(use_threads=True)
    if wrong:
        # Only a single thread knows the number of a row.
        wrong.clear()
        read(use_threads=False)
        first = wrong[0]
        row = None if first.number is None else first.number - 2
        raise LogError(path, f"has {first.actual_columns} cells, the header has {first.expected_columns}", row)
    return table


def _jsonl(path: Path, choice: _Choice) -> pa.Table:
    # Told that a column is text, Arrow leaves an id such as 2020-01-01 as it is; it fails on an id that is a number.
    schema = pa.schema([(name, pa.string()) for name in choice.text()])
    try:
        with pa.input_stream(path, compression="detect") as stream:
            table = pa.json.read_json(stream, parse_options=pa.json.ParseOptions(explicit_schema=schema))
    except pa.ArrowInvalid:
        return _jsonl_by_line(path)
    return table.select([name for name in table.column_names if table[name].null_count < len(table)])


def _jsonl_by_line(path: Path) -> pa.Table:
    """Slower, but takes numbers and text in one column, and knows the line of a fault."""
    rows = list(json_lines(path))
    names = dict.fromkeys(name for row in rows for name in row)
    found = {name: [row.get(name) for row in rows] for name in names}
    return pa.table({name: _column(cells) for name, cells in found.items()})


def _column(cells: list[Any]) -> pa.Array:
    try:
        return pa.array(cells)
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        return pa.array([None if cell is None else str(cell) for cell in cells])


def json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSONL file, blank lines left out.

    Raises:
        LogError: a line is no JSON object.
    """
    opener: Any = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8") as file:
        for row, line in enumerate(file):
            if not line.strip():
                continue
            try:
                value = json.loads(line)
            except ValueError as error:
                raise LogError(path, f"is not JSON ({error})", row) from None
            if not isinstance(value, dict):
                raise LogError(path, "each line must be a JSON object", row)
            yield value


def _parquet(path: Path, choice: _Choice) -> pa.Table:
    return pa.parquet.read_table(path, columns=list(choice.of(pa.parquet.read_schema(path).names)))


_READERS: Final[dict[str, Callable[[Path, _Choice], pa.Table]]] = {
    ".csv": _csv,
    ".jsonl": _jsonl,
    ".parquet": _parquet,
}
