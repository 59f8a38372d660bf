"""docs/performance.md and its plots, and docs/capacity.md, from the JSONs; nothing in them is typed by hand."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from benchmarks.capacity import write_capacity
from benchmarks.notes import note_of
from benchmarks.plots import draw
from benchmarks.result import ROOT, BenchmarkError, Result

DOCUMENT: Final = ROOT / "docs" / "performance.md"
PLOTS: Final = DOCUMENT.parent / "plots"
_MET: Final = {"met": "yes", "not met": "no"}

_HEAD: Final = """\
# Performance

Each figure stands beside a baseline taken in the same run: the figure is the median of its repeats, and the spread is
the least and the most of them. Repeats of both sides alternate, so that a machine that drifts drifts for both. Not so:
P1b seeks and repeats the echo's rate before the application's, P12 repeats with one Gateway and then with two, P13
takes one size after another and calls of each, and P11 is one run whose samples are looks at memory. P6b is compared
with a setting, P6c with what is taken of the same changes. A ratio carries from one machine to another better than a
figure does. Stages are medians, where a section says nothing else.

`make bench` takes the measures, writes `benchmarks/results/performance/*.json` and makes this page from them, in less
than 25 minutes; P6 (with P6b), P7, P11, P12 and P13 are taken only by name (`--only`). The page alone again:
`.venv/bin/python -m benchmarks --report`.
"""


def write_report(results: Path) -> Path:
    """Write the document, the plots and docs/capacity.md; where the document lies.

    Raises:
        BenchmarkError: there are no results, or a file is none.
    """
    found = read_results(results)
    PLOTS.mkdir(parents=True, exist_ok=True)
    for result in found:
        draw(result, PLOTS / f"{result.id}.svg")
    DOCUMENT.write_text(render(found))
    write_capacity(found)
    return DOCUMENT


def read_results(folder: Path) -> list[Result]:
    """All results of a folder, by id.

    Raises:
        BenchmarkError: there are none, or a file is none.
    """
    found = []
    for path in sorted(folder.glob("P*.json")):
        try:
            found.append(Result.model_validate(json.loads(path.read_text())))
        except (ValidationError, ValueError) as error:
            raise BenchmarkError(f"{path}: not a result of this version: {error}") from None
    if not found:
        raise BenchmarkError(f"{folder}: no results; take them with `make bench`")
    return found


def render(results: Sequence[Result]) -> str:
    """The document."""
    return "\n".join([_HEAD, *_table(results), "", *_machines(results), *(_section(result) for result in results)])


def _table(results: Sequence[Result]) -> list[str]:
    rows = [
        f"| [{r.id}](#{r.id.lower()}) | {r.name} | {_figure(r.value, r.unit)} {_spread(r.spread['value'])}{_p99(r)} "
        f"| {_figure(r.baseline, r.unit)} {_spread(r.spread['baseline'])}{_p99(r, 'baseline_')} ({r.baseline_name}) "
        f"| {r.ratio:.2f} "
        f"| {r.goal} | {_MET.get(r.outcome, r.outcome)} |"
        for r in results
    ]
    return ["| # | Measure | Value | Baseline | Ratio | Goal | Met |", "|---|---|---|---|---|---|---|", *rows]


def _p99(result: Result, whose: str = "") -> str:
    p99 = result.details.get(f"{whose}p99_ms")
    return "" if p99 is None else f", p99 {_figure(p99, 'ms')}"


def _machines(results: Sequence[Result]) -> list[str]:
    """One line for each machine and commit."""
    places: dict[str, list[str]] = {}
    for result in results:
        places.setdefault(f"{result.machine}; commit {result.commit}", []).append(result.id)
    return [f"{', '.join(ids)}: {place}." for place, ids in places.items()]


def _section(result: Result) -> str:
    parts = [
        f"\n## {result.id}",
        f"\n{result.name[0].upper()}{result.name[1:]}. Goal: {result.goal_and_outcome}.",
        f"\n![{result.id}: repeats and their baseline](plots/{result.id}.svg)",
        f"\n{result.protocol}",
    ]
    if note := note_of(result):
        parts.append(f"\n{note}")
    if result.quick:
        parts.append(
            "\nA quick trial with small sizes: it shows that the measure works, its figures are not to be quoted."
        )
    if result.stages:
        parts += ["\n| Stage | |", "|---|---|"]
        parts += [f"| {stage.name} | {_figure(stage.value, stage.unit)} |" for stage in result.stages]
    if result.details:
        parts += ["\n| Further | |", "|---|---|"]
        parts += [f"| {name.replace('_', ' ')} | {value:,.10g} |" for name, value in result.details.items()]
    return "\n".join([*parts, ""])


def _figure(value: float, unit: str) -> str:
    return f"{value:,.0f} {unit}" if value >= 1_000 else f"{value:.3g} {unit}"


def _spread(spread: tuple[float, float]) -> str:
    least, most = (f"{v:,.0f}" if v >= 1_000 else f"{v:.3g}" for v in spread)
    return f"[{least} to {most}]"
