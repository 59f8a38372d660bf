"""A log and the items beside it, in the columns that training and evaluation read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from pinrec.config import Action, ModelConfig, Vocabulary
from pinrec.dataset import EventColumns
from pinrec.items import Catalogue, Item
from streaming.item_files import items_beside, read_items
from streaming.log_files import FORMS, LogError
from streaming.logs import derive_vocabulary, read_log

LOG_STEM: Final = "interactions"


@dataclass(frozen=True, eq=False)
class LogColumns:
    """What a log holds: `events` in the order of time, `catalogue` of the items that occur, by ascending id."""

    events: EventColumns
    catalogue: Catalogue
    vocabulary: Vocabulary


def read_log_columns(
    path: Path,
    columns: Mapping[str, str] | None = None,
    config: ModelConfig | None = None,
    vocabulary: Vocabulary | None = None,
    all_engage: bool = False,
    beginnings: Mapping[str, Sequence[int]] | None = None,
) -> LogColumns:
    """Read a log, and the metadata of its items where an items file lies beside it.

    Args:
        path: the log, or a folder that holds one named `interactions` (`log_in`).
        columns: the file's name -> ours, where a column is called otherwise.
        config: sizes of the catalogue's features; the defaults where None.
        vocabulary: the declared actions and surfaces; derived from the log where None.
        all_engage: count every action as engaging, whatever the vocabulary says.
        beginnings: of codes in the items file, see `read_items`.

    Raises:
        LogError: a file cannot be read; with file, line and column, and the remedy.
        ValueError: the log is empty, or an action or surface is not declared.
    """
    path = log_in(path)
    log = read_log(path, columns)
    vocabulary = vocabulary or derive_vocabulary(log)
    if all_engage:
        actions = tuple(Action(name=action.name) for action in vocabulary.actions)
        vocabulary = Vocabulary(actions=actions, surfaces=vocabulary.surfaces)
    events = EventColumns.of_columns({name: log.table[name] for name in log.table.column_names}, vocabulary)
    named = log.table["item_id"].filter(pa.array(~events.is_query))
    items = {item_id: Item(item_id) for item_id in sorted(pc.unique(named).to_pylist())}
    beside = items_beside(path)
    for update in read_items(beside, beginnings) if beside else ():
        if update.item_id in items:
            # Every field of an item is one of its update.
            items[update.item_id] = Item(**dict(update))
    return LogColumns(events, Catalogue.of(list(items.values()), config or ModelConfig()), vocabulary)


def log_in(path: Path) -> Path:
    """The log in a folder, `interactions` in any known form; a file is itself.

    Raises:
        LogError: the folder holds none.
    """
    if not path.is_dir():
        return path
    found = next((path / f"{LOG_STEM}{form}" for form in FORMS if (path / f"{LOG_STEM}{form}").is_file()), None)
    if found is None:
        raise LogError(path, f"holds no log; name it {LOG_STEM}.csv.gz (or {', '.join(FORMS)})")
    return found
