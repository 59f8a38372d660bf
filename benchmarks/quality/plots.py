"""Pictures of the runs, drawn without a display, the same bytes from the same figures."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import matplotlib as mpl
from matplotlib.figure import Figure

from benchmarks.quality.budgets_report import WITH, Pooled
from benchmarks.quality.compare import interval
from benchmarks.quality.ratios import Ratio
from benchmarks.quality.record import Run

_STYLE: Final = {"svg.hashsalt": "pinrec", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
_OURS: Final = "#1f6feb"
_BASELINE: Final = "#8b949e"
_SECOND: Final = "#bc4c00"


def draw_curves(
    by_dataset: Mapping[str, Sequence[Run]], titles: Mapping[str, str], names: Mapping[str, str], path: Path
) -> None:
    """NDCG@10 on validation over the hours of a run, one panel a data set, the first seed of each model."""
    with mpl.rc_context(_STYLE):
        picture = Figure(figsize=(9.0, 3.4), layout="constrained")
        panels = picture.subplots(1, len(by_dataset), squeeze=False)[0]
        for axes, (dataset, runs) in zip(panels, by_dataset.items(), strict=True):
            first = {run.model: run for run in sorted(runs, key=lambda run: -run.seed)}
            for model, run in sorted(first.items()):
                points = [(p.seconds / 3600, p.valid["ndcg@10"]) for p in run.curve if p.valid]
                wide = 2.0 if model == "pinrec" else 1.0
                axes.plot(
                    *zip(*points, strict=True),
                    label=names[model],
                    linewidth=wide,
                    marker="." if len(points) < 2 else "",
                )
            axes.set_title(titles[dataset])
            axes.set_xlabel("hours")
            axes.set_ylabel("NDCG@10 on validation")
            axes.set_ylim(bottom=0)
            axes.legend(frameon=False, fontsize=8)
        picture.savefig(path, format="svg", metadata={"Date": None})


def draw_bars(by_model: Mapping[str, Sequence[Run]], names: Mapping[str, str], figure: str, path: Path) -> None:
    """A figure of each model with its 95 % interval over users, the first model on top."""
    with mpl.rc_context(_STYLE):
        picture = Figure(figsize=(9.0, 0.6 + 0.3 * len(by_model)), layout="constrained")
        axes = picture.subplots()
        rows = list(by_model.items())[::-1]
        for row, (model, runs) in enumerate(rows):
            found = interval(runs, figure)
            error = [[found.mean_b - found.low], [found.high - found.mean_b]]
            colour = _OURS if model.startswith("pinrec") else _BASELINE
            axes.barh(row, found.mean_b, xerr=error, height=0.6, color=colour, alpha=0.6, capsize=3)
        axes.set_yticks(range(len(rows)), [names[model] for model, _ in rows])
        axes.set_xlim(left=0)
        axes.set_xlabel(f"{figure}, with its 95 % interval over users")
        picture.savefig(path, format="svg", metadata={"Date": None})


def draw_sweeps(pooled: Pooled, path: Path) -> None:
    """One panel a sweep: recall of its first outcome against that of the others, with 95 % intervals of both."""
    size = pooled.sizes[-1]
    with mpl.rc_context(_STYLE):
        picture = Figure(figsize=(3.6 * len(pooled.sweeps), 3.4), layout="constrained")
        for axes, sweep in zip(picture.subplots(1, len(pooled.sweeps), squeeze=False)[0], pooled.sweeps, strict=True):
            falling, others = sweep
            along = {name: pooled.along(sweep, WITH, name, size) for name in (falling, *others)}
            for other, colour in zip(others, (_OURS, _SECOND), strict=False):
                both = zip(along[falling], along[other], strict=True)
                points = [(x, y) for x, y in both if x is not None and y is not None]
                (xs, x_error), (ys, y_error) = (_with_errors([point[i] for point in points]) for i in (0, 1))
                axes.errorbar(xs, ys, y_error, x_error, color=_BASELINE, linewidth=0.4, fmt="none")
                axes.plot(xs, ys, color=colour, marker="o", markersize=3, label=other)
                axes.annotate(f"all {falling}", (xs[-1], ys[-1]), xytext=(4, 4), textcoords="offset points")
            axes.set_title(f"{falling} against {' and '.join(others)}")
            axes.set_xlabel(f"recall of {falling}, lists of {size}")
            axes.set_ylabel("recall of the other")
            axes.legend(frameon=False, fontsize=8)
        picture.savefig(path, format="svg", metadata={"Date": None})


def _with_errors(figures: Sequence[Ratio]) -> tuple[list[float], list[list[float]]]:
    values = [figure.value for figure in figures]
    ends = [figure.interval for figure in figures]
    low, high = ([max(0.0, abs(end[i] - v)) for end, v in zip(ends, values, strict=True)] for i in (0, 1))
    return values, [low, high]
