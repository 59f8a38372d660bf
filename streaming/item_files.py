"""Reading the items that lie beside a log."""

import csv
import gzip
import math
import re
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from streaming.log_files import LogError, form_of, json_lines
from streaming.schema import MAX_CATEGORIES, MAX_NUMBERS, ItemUpdate, first_problem

NAMES: Final = ("items.csv.gz", "items.csv", "items.jsonl", "items.jsonl.gz")
_MAX_TITLE: Final = 512
_MAX_VALUE: Final = 63  # with the name of its column it fits a category
_NAMED: Final = ("item_id", "title", "category", "author", "author_id", "created_at")
_COLUMN: Final = re.compile(r"[A-Za-z0-9_.:-]{1,64}")


def items_beside(log: Path) -> Path | None:
    """The items file in the log's folder, if there is one."""
    return next((path for name in NAMES if (path := log.parent / name).is_file()), None)


def read_items(path: Path, beginnings: Mapping[str, Sequence[int]] | None = None) -> Iterator[ItemUpdate]:
    """The items of a file.

    A CSV has the column item_id, and may have title (longer ones are cut at 512 characters), category (separated by
    `|`, or by spaces where there is no `|`), author or author_id, and created_at (epoch seconds or RFC 3339: nothing is
    learnt from an item's absence before). Every other column is a feature by its name:

    - one that holds nothing but numbers, and whose name does not end in `_id`, is in `numeric`: `year`;
    - any other adds a category `name=value`, such as `music_id=77`, to the items that share the value. A value of one
      item alone, or of more than 63 characters, says nothing about other items and is left out.

    Of these the first columns count, 16 numbers and as many values as make 64 categories. A JSONL line holds the fields
    of ItemUpdate.

    Args:
        beginnings: columns of a CSV that hold codes, which tell something by how they begin (an ISBN its publisher, a
            barcode its maker), and the lengths of the beginnings that are values as well.

    Raises:
        LogError: with file, line and column.
    """
    path = Path(path)
    if not path.is_file():
        raise LogError(path, "no such file")
    if form_of(path) == ".jsonl":
        rows: Iterator[dict[str, Any]] = json_lines(path)
    elif form_of(path) == ".csv":
        rows = _csv_rows(path, beginnings or {})
    else:
        raise LogError(path, f"items are read from {', '.join(NAMES)}")
    try:
        for row, values in enumerate(rows):
            try:
                yield ItemUpdate.model_validate(values)
            except ValidationError as error:
                problem = first_problem(error)
                raise LogError(path, problem.reason, row, problem.field) from None
    except (OSError, EOFError, UnicodeDecodeError, csv.Error, zlib.error) as error:
        raise LogError(path, f"cannot be read: {error}") from error


@dataclass(frozen=True)
class _Columns:
    """What the columns that we have no name for hold.

    Args:
        numbers: names of the columns of numbers.
        shared: of every other column, the values that at least two items have.
        beginnings: see `read_items`.
    """

    numbers: Sequence[str]
    shared: dict[str, frozenset[str]]
    beginnings: Mapping[str, Sequence[int]]

    @classmethod
    def of(
        cls, rows: Iterator[dict[str, str]], names: Sequence[str], beginnings: Mapping[str, Sequence[int]]
    ) -> "_Columns":
        """From a look at the whole file."""
        others = [name for name in names if name not in _NAMED and _COLUMN.fullmatch(name)]
        numbers = {name for name in others if not name.endswith("_id") and name not in beginnings}
        counts = {name: Counter[str]() for name in others}
        for row in rows:
            for name in others:
                value = (row.get(name) or "").strip()
                counts[name].update(_told(value, beginnings.get(name, ())))
                if value and name in numbers and _number(value) is None:
                    numbers.remove(name)
        return cls(
            [name for name in others if name in numbers and counts[name]][:MAX_NUMBERS],
            {
                name: frozenset(value for value, items in counts[name].items() if items > 1)
                for name in others
                if name not in numbers
            },
            beginnings,
        )

    def numeric(self, row: dict[str, str]) -> dict[str, float]:
        found = {name: _number(row.get(name) or "") for name in self.numbers}
        return {name: value for name, value in found.items() if value is not None and math.isfinite(value)}

    def categories(self, row: dict[str, str]) -> list[str]:
        return [
            f"{name}={value}"
            for name, shared in self.shared.items()
            for value in _told((row.get(name) or "").strip(), self.beginnings.get(name, ()))
            if value in shared
        ]


def _told(value: str, lengths: Sequence[int]) -> list[str]:
    """What a cell says: its beginnings, and itself."""
    values = [value[:length] for length in lengths if length < len(value)] + [value]
    return [one for one in values if one and len(one) <= _MAX_VALUE]


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _csv_rows(path: Path, beginnings: Mapping[str, Sequence[int]]) -> Iterator[dict[str, Any]]:
    opener: Any = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        names = list(reader.fieldnames or [])
        if "item_id" not in names:
            raise LogError(path, f"has no column item_id; it has {', '.join(names)}")
        if missing := [name for name in beginnings if name not in names]:
            raise LogError(path, f"beginnings: there is no column {missing[0]}; there are {', '.join(names)}")
        columns = _Columns.of(reader, names, beginnings)
        file.seek(0)
        for row in csv.DictReader(file):
            category = row.get("category") or ""
            own = category.split("|") if "|" in category else category.split()
            created = row.get("created_at") or "0"
            yield {
                "item_id": row["item_id"] or "",
                "title": (row.get("title") or "")[:_MAX_TITLE],
                "categories": (own + columns.categories(row))[: max(len(own), MAX_CATEGORIES)],
                "author": row.get("author") or row.get("author_id") or None,
                "numeric": columns.numeric(row),
                "created_at": created if (seconds := _number(created)) is None else seconds,
            }
