"""docs/freshness.md and its plot, from the JSONs; nothing in them is typed by hand."""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import matplotlib as mpl
from matplotlib.figure import Figure

from benchmarks.result import ROOT
from benchmarks.synced.record import Replayed, Synced, What, read_replays

DOCUMENT: Final = ROOT / "docs" / "freshness.md"
PLOT: Final = DOCUMENT.parent / "plots" / "freshness.svg"

_HEAD: Final = """\
# What freshness is worth

The last days of a real log are played again in its own time. Just before a user engages with an item that is new to
them, a list of ten is made, and it counts whether the item is in it. Twice over, something is synced ever more rarely:

- **histories**: the user's events are those up to the last sync, with the weights of the beginning;
- **weights**: the history is that of the moment, and the weights are those of the last sync. One training goes on
  through the time, a round a minute as the trainer does, and each sync takes what it has learnt by then.

The model is trained on everything before those days, with the recipe of the quality benchmark. Events of the very
moment are not known, items of the history are not retrieved, all of the catalogue is ranked. A gain is relative to
never syncing; its 95 % interval is by the paired bootstrap over the moments. A user without any event at the last sync
gets what is popular; tested are users who have some from before the first day.

`.venv/bin/python -m benchmarks.synced --help` says how a replay is taken; it writes
`benchmarks/results/freshness/*.json` and makes this page.
"""


def write_report(folder: Path) -> Path:
    """Write the page and the plot; where the page lies.

    Raises:
        BenchmarkError: there are no replays.
    """
    replays = read_replays(folder)
    DOCUMENT.write_text(render(replays))
    _draw(replays[0], PLOT)
    return DOCUMENT


def render(replays: Sequence[Replayed]) -> str:
    """The page."""
    parts = [_HEAD, f"![Recall@10 by the interval between syncs]({PLOT.relative_to(DOCUMENT.parent)})", ""]
    for replay in replays:
        parts += [
            f"## {replay.data}, seed {replay.seed}",
            "",
            f"The last {replay.days:g} days: {replay.moments:,} moments of {replay.users:,} users; {replay.rounds:,} "
            f"rounds of training. {replay.machine}; commit {replay.commit}; {replay.seconds / 60:.0f} minutes.",
            "",
            *_table(replay, "histories"),
            *_table(replay, "weights"),
        ]
    return "\n".join(parts)


def _table(replay: Replayed, what: What) -> list[str]:
    rows: list[Synced] = getattr(replay, what)
    verdict = "the rarer the sync, the less is found" if replay.monotone(what) else "not monotone"
    return [
        f"| {what.capitalize()} synced at each | Recall@10 | Gain over never |",
        "|---|---:|---:|",
        *(f"| {row.sync} | {row.recall:.4f} | {row.gain:+.1%} [{row.low:+.1%} to {row.high:+.1%}] |" for row in rows),
        "",
        f"{what.capitalize()}: {verdict}.",
        "",
    ]


def _draw(replay: Replayed, path: Path) -> None:
    style = {"svg.hashsalt": "pinrec", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
    with mpl.rc_context(style):
        figure = Figure(figsize=(7.0, 2.8), layout="constrained")
        axes = figure.subplots()
        syncs = [row.sync for row in replay.histories]
        for what, colour in (("histories", "#1f6feb"), ("weights", "#d29922")):
            rows: list[Synced] = getattr(replay, what)
            axes.plot(
                [syncs.index(row.sync) for row in rows], [row.recall for row in rows], "o-", color=colour, label=what
            )
        axes.set_xticks(range(len(syncs)), syncs)
        axes.set_xlabel("synced at each")
        axes.set_ylabel("recall@10")
        axes.set_ylim(bottom=0)
        axes.legend(frameon=False)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, format="svg", metadata={"Date": None})
