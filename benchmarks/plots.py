"""One picture a measure, drawn without a display, the same bytes from the same figures."""

import textwrap
from pathlib import Path
from typing import Final

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.result import Result

_OURS: Final = "#1f6feb"
_BASELINE: Final = "#8b949e"


def draw(result: Result, path: Path) -> None:
    """Repeats beside their baseline, and the stages and the curve where there are any."""
    with mpl.rc_context(
        {"svg.hashsalt": "pinrec", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
    ):
        parts = [_repeats, *([_stages] if result.stages else []), *([_curve] if result.curve else [])]
        height = 2.2 if len(parts) == 1 else 2.6
        figure = Figure(figsize=(9.0 if len(parts) < 3 else 12.0, height), layout="constrained")
        for axes, part in zip(figure.subplots(1, len(parts), squeeze=False)[0], parts, strict=True):
            part(axes, result)
        figure.savefig(path, format="svg", metadata={"Date": None})


def _repeats(axes: Axes, result: Result) -> None:
    rows = (
        (result.baseline_name, result.samples["baseline"], result.baseline, _BASELINE),
        ("PinRec", result.samples["value"], result.value, _OURS),
    )
    for row, (_, samples, median, colour) in enumerate(rows):
        axes.barh(row, median, height=0.5, color=colour, alpha=0.35)
        axes.plot(samples, [row] * len(samples), "o", color=colour, markersize=4)
    axes.set_yticks(range(len(rows)), [textwrap.fill(name, 26) for name, *_ in rows])
    axes.set_xlim(left=0)
    axes.set_xlabel(f"{result.unit}; bar: the figure, dots: its samples")


def _stages(axes: Axes, result: Result) -> None:
    stages = result.stages[::-1]
    axes.barh(range(len(stages)), [stage.value for stage in stages], height=0.6, color=_OURS, alpha=0.6)
    axes.set_yticks(range(len(stages)), [stage.name.partition(" (")[0] or stage.name for stage in stages])
    axes.set_xlabel(stages[0].unit)


def _curve(axes: Axes, result: Result) -> None:
    curve = result.curve
    assert curve is not None
    for name, values in curve.y.items():
        axes.plot(curve.x, values, "o-", markersize=4, label=name)
    if len(curve.x) > 2 and max(curve.x) >= 8 * min(curve.x):
        axes.set_xscale("log", base=2)
        axes.set_xticks(curve.x, [f"{x:g}" for x in curve.x], rotation=45)
    axes.set_ylim(bottom=0)
    axes.set_xlabel(curve.x_name)
    axes.set_ylabel(curve.y_name)
    axes.legend(frameon=False)
