"""Reading the items that lie beside a log."""

import csv
import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from streaming.log_files import LogError, form_of, json_lines
from streaming.schema import ItemUpdate, first_problem

NAMES: Final = ("items.csv.gz", "items.csv", "items.jsonl", "items.jsonl.gz")
_MAX_TITLE: Final = 512


def items_beside(log: Path) -> Path | None:
    """The items file in the log's folder, if there is one."""
    return next((path for name in NAMES if (path := log.parent / name).is_file()), None)


def read_items(path: Path) -> Iterator[ItemUpdate]:
    """The items of a file.

    A CSV has the columns item_id, title and category, the latter separated by `|`, or by spaces where there is no `|`;
    other columns are left out, and longer titles are cut at 512 characters. A JSONL line holds the fields of
    ItemUpdate.

    Raises:
        LogError: with file, line and column.
    """
    path = Path(path)
    if not path.is_file():
        raise LogError(path, "no such file")
    if form_of(path) == ".jsonl":
        rows: Iterator[dict[str, Any]] = json_lines(path)
    elif form_of(path) == ".csv":
        rows = _csv_rows(path)
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


def _csv_rows(path: Path) -> Iterator[dict[str, Any]]:
    opener: Any = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        names = reader.fieldnames or []
        if "item_id" not in names:
            raise LogError(path, f"has no column item_id; it has {', '.join(names)}")
        for row in reader:
            category = row.get("category") or ""
            yield {
                "item_id": row["item_id"] or "",
                "title": (row.get("title") or "")[:_MAX_TITLE],
                "categories": tuple(category.split("|") if "|" in category else category.split()),
            }
