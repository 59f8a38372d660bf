"""Pictures of the runs, drawn without a display, the same bytes from the same figures."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import matplotlib as mpl
from matplotlib.figure import Figure

from benchmarks.quality.compare import interval
from benchmarks.quality.record import Run

_STYLE: Final = {"svg.hashsalt": "pinrec", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
_OURS: Final = "#1f6feb"
_BASELINE: Final = "#8b949e"


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
