"""The training events as RecBole's atomic files, and what RecBole is told of them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from pinrec.protocols import Split

# Sizes of the model, the same for PinRec; the rest are RecBole's own defaults for SASRec.
WIDTH: Final = 64
LAYERS: Final = 2
HEADS: Final = 2
INNER: Final = 256
DROPOUT: Final = 0.2


@dataclass(frozen=True)
class Events:
    """How many training events there are of how many items, and how many predictions they give."""

    events: int
    items: int
    predictions: int


def write_atomic(split: Split, folder: Path, name: str, users: int | None = None) -> Events:
    """Write `folder`/`name`/`name`.inter and .item; an event's time is its place in the user's history.

    So equal times have one order on both sides. The items are those of the catalogue, in training or not: both sides
    rank them all.

    Args:
        users: only so many; None: all.
    """
    log, catalogue = split.log, split.log.catalogue
    rows = np.flatnonzero(split.train & (log.item >= 0))
    rows = rows if users is None else rows[log.events.user[rows] < users]
    user, item = log.events.user[rows], log.item[rows]
    below = folder / name
    below.mkdir(parents=True, exist_ok=True)
    _write(below / f"{name}.item", ("item_id:token",), ([row] for row in range(len(catalogue))))
    _write(
        below / f"{name}.inter",
        ("user_id:token", "item_id:token", "timestamp:float"),
        zip(user.tolist(), item.tolist(), (rows - log.start[user]).tolist(), strict=True),
    )
    return Events(len(rows), len(catalogue), len(rows) - len(np.unique(user)))


def recbole_config(folder: Path, length: int, batch: int) -> dict[str, Any]:
    """RecBole's settings of SASRec at this length of history and number of predictions in a step.

    What is not named here has RecBole's own default: Adam at 1e-3, no clipping, shuffled rows.
    """
    return {
        "data_path": str(folder),
        "checkpoint_dir": str(folder / "saved"),
        "load_col": {"inter": ["user_id", "item_id", "timestamp"], "item": ["item_id"]},
        "MAX_ITEM_LIST_LENGTH": length,
        "hidden_size": WIDTH,
        "n_layers": LAYERS,
        "n_heads": HEADS,
        "inner_size": INNER,
        "hidden_dropout_prob": DROPOUT,
        "attn_dropout_prob": DROPOUT,
        "loss_type": "CE",
        "train_neg_sample_args": None,
        "train_batch_size": batch,
        "eval_args": {"split": {"RS": [1.0, 0.0, 0.0]}, "order": "TO", "group_by": "user", "mode": "full"},
        "use_gpu": False,
        "gpu_id": "",
        "show_progress": False,
    }


def _write(path: Path, head: Sequence[str], rows: Iterator[Sequence[object]]) -> None:
    with path.open("w") as file:
        for row in (head, *rows):
            file.write("\t".join(map(str, row)) + "\n")
