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
    """Repeats beside their baseline, and the stages where there are any."""
    with mpl.rc_context(
        {"svg.hashsalt": "pinrec", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
    ):
        figure = Figure(figsize=(9.0, 2.6 if result.stages else 2.2), layout="constrained")
        axes = figure.subplots(1, 2 if result.stages else 1, squeeze=False)[0]
        _repeats(axes[0], result)
        if result.stages:
            _stages(axes[1], result)
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
    axes.set_xlabel(f"{result.unit}; bar: median, dots: repeats")


def _stages(axes: Axes, result: Result) -> None:
    stages = result.stages[::-1]
    axes.barh(range(len(stages)), [stage.value for stage in stages], height=0.6, color=_OURS, alpha=0.6)
    axes.set_yticks(range(len(stages)), [stage.name.partition(" (")[0] or stage.name for stage in stages])
    axes.set_xlabel(f"{stages[0].unit}, median")
