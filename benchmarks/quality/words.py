"""Names and numbers as docs/quality.md prints them."""

import math
from collections.abc import Sequence
from typing import Final

from benchmarks.quality.record import Run
from pinrec.measures import Difference

NOT_RUN: Final = "not run yet"
DATA: Final = {"ml1m": "ML-1M", "amazon_beauty": "Amazon Beauty", "kuairand_pure": "KuaiRand-Pure"}
NAMES: Final = {
    "popular": "popular, all time",
    "popular_recent": "popular, recent",
    "two_tower": "two-tower",
    "sasrec_bce": "SASRec, BCE",
    "sasrec": "SASRec, full softmax",
    "pinnerformer": "PinnerFormer",
    "hstu": "HSTU",
    "tiger": "TIGER",
    "pinrec_uc": "PinRec-UC",
    "pinrec_oc": "PinRec-OC",
    "pinrec": "PinRec-MT,OC",
    "no_multi_hash": "no multi-hash",
    "no_content": "no content",
    "ids_alone": "no content, no `id_decay`",
    "no_logq": "no logQ",
    "in_batch_only": "in-batch negatives only",
    "feed_relaxation": "with intra-feed relaxation",
    "impression_negatives": "with impression negatives",
    "no_time": "no time features",
    "e1": "1 embedding a step",
    "e1_in_turn": "1 embedding a step, outcomes in turn",
    "e4": "4 embeddings a step",
    "e16": "16 embeddings a step",
}


def of_model(runs: Sequence[Run], model: str) -> list[Run]:
    """The runs of one model."""
    return [run for run in runs if run.model == model]


def name_of(model: str, protocol: str = "disjoint") -> str:
    """A model as the page calls it; under leave-one-out there is one mode, the unconditioned one."""
    return "PinRec" if (model, protocol) == ("pinrec", "loo") else NAMES.get(model, model)


def share(value: float | None, digits: int = 4) -> str:
    """A figure from 0 to 1 as `.1234`; `n/a` where there is none."""
    if value is None or math.isnan(value):
        return "n/a"
    return f"{value:.{digits}f}".removeprefix("0") if value < 1 else f"{value:.{digits}f}"


def percent(value: float) -> str:
    """`+12.3 %`."""
    return f"{100 * value:+.1f} %"


def relative(found: Difference) -> str:
    """`+3.1 % [+1.2 % to +5.0 %]`: the difference with its interval over the first mean."""
    if not found.mean_a:
        return "n/a"
    low, high = percent(found.low / found.mean_a), percent(found.high / found.mean_a)
    return f"{percent(found.relative)} [{low} to {high}]"


def verdict(found: Difference, goal: float = 0.0, *, lower: bool = False) -> str:
    """Whether the second is higher (or lower) by `goal`, relative; "none" where the interval holds zero.

    A goal is met by the figure itself: the interval decides only that there is a difference.
    """
    if not found.decided:
        return "none"
    gain = -found.difference if lower else found.difference
    return "met" if gain > 0 and gain >= goal * found.mean_a else "not met"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table, the first column to the left, and an empty line."""
    line = "|".join(["", "---", *["---:"] * (len(head) - 1), ""])
    return [*("| " + " | ".join(row) + " |" for row in [head]), line, *("| " + " | ".join(r) + " |" for r in rows), ""]
