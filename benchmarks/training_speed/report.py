"""The section of docs/quality.md on training speed."""

from collections.abc import Mapping
from typing import Final

from benchmarks.quality.words import DATA, NOT_RUN, table
from benchmarks.result import Result
from benchmarks.training_speed.record import SIDES

_TITLE: Final = """\
## Training speed

PinRec's learner against RecBole's SASRec on the same events, at the same width, number of layers, length of history,
loss and number of predictions a step, in one run: `.venv/bin/python -m benchmarks.training_speed --data path/ml1m`
takes the measure (`--help` tells more). A *prediction* is one target learnt from. RecBole makes a row for each target,
with the history before it, and encodes all of it for that one prediction; PinRec predicts at every position of a window
it encodes once. The last row of the table is not RecBole as it is, but its network and trainer with the loss at every
position: what is left there is the difference between the two implementations.
"""
_HEAD: Final = (
    "Data",
    "Side",
    "Predictions/s",
    "Step, ms",
    "Predictions a step",
    "Events encoded/s",
    "PinRec against it",
)


def training_speed_section(results: Mapping[str, Result]) -> list[str]:
    """One table for all data sets, and how each was measured."""
    if not results:
        return [_TITLE, f"{NOT_RUN}\n"]
    rows = [row for dataset, result in results.items() for row in _rows(dataset, result)]
    return [_TITLE, *table(_HEAD, rows), *(_told(dataset, result) for dataset, result in results.items())]


def _rows(dataset: str, result: Result) -> list[list[str]]:
    names = ("PinRec", result.baseline_name, "RecBole's network, a prediction at every position")
    rows = []
    for side, name in zip(SIDES, names, strict=True):
        figure = result.details[f"{side}_per_s"]
        rows.append(
            [
                DATA.get(dataset, dataset),
                name,
                f"{figure:,.4g} [{' to '.join(f'{v:,.4g}' for v in result.spread[side])}]",
                f"{result.details[f'{side}_step_ms']:,.4g}",
                f"{result.details[f'{side}_predictions_per_step']:,.0f}",
                f"{result.details[f'{side}_events_per_s']:,.0f}",
                "" if side == SIDES[0] else f"{result.value / figure:.1f}x",
            ]
        )
    return rows


def _told(dataset: str, result: Result) -> str:
    trial = " A quick trial with small sizes: its figures are not to be quoted." if result.quick else ""
    return (
        f"{DATA.get(dataset, dataset)}: goal {result.goal}: {'met' if result.met else 'not met'}.{trial} "
        f"{result.protocol} On {result.machine}; commit {result.commit}.\n"
    )
