"""docs/freshness.md and its plots, from the JSONs; nothing in them is typed by hand."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.result import ROOT
from benchmarks.synced.record import Lived, Replayed, monotone, read_records

DOCUMENT: Final = ROOT / "docs" / "freshness.md"
PLOTS: Final = DOCUMENT.parent / "plots"
LOG_PLOT: Final = "freshness"
TOWN_PLOT: Final = "freshness-town"
PARTS: Final = ("everything", "catalogue", "histories", "weights")
SYNCS: Final = ("minute", "hour", "day", "never")
_NOT_RUN: Final = "Not run yet.\n"
_COLOURS: Final = {"histories": "#1f6feb", "weights": "#d29922", "catalogue": "#2da44e", "everything": "#8250df"}
_STYLE: Final = {"svg.hashsalt": "pinrec", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}

_HEAD: Final = """\
# What freshness is worth

`.venv/bin/python -m benchmarks.synced --help` says how these figures are taken; it writes
`benchmarks/results/freshness/*.json`, one file a run, goes on after a cut with those that are missing, and makes this
page.
"""

_LOG: Final = """\
## On a real log, in its own time

The last days of a log are played again. Just before a user engages with an item that is new to them, a list of ten is
made, and it counts whether the item is in it. Twice over, something is synced ever more rarely:

- **histories**: the user's events are those up to the last sync, with the weights of the beginning;
- **weights**: the history is that of the moment, and the weights are those of the last sync. One training goes on
  through the time, a round a minute as the trainer does, and each sync takes what it has learnt by then.

The model is trained on everything before those days, with the recipe of the quality benchmark (but for the
running average of the weights, ten steps long here, which would otherwise be older than a sync). Events of the very
moment are not known, items of the history are not retrieved, all of the catalogue is ranked. A gain is relative to
never syncing; its 95 % interval is by the paired bootstrap over the moments. A user without any event at the last sync
gets what is popular; tested are users who have some from before the first day.
"""

_TOWN: Final = """\
## In closed loop, in the simulated town

Here a recommendation has consequences: inhabitants of the [town](simulator.md) look at the lists they get and act,
their acts are what later lists are made of and what the model learns from, and the town knows what every list is truly
worth. Tastes drift, and items come and go. In each simulated minute whoever is in session gets a list of ten. Its worth
is the number of clicks, saves and shares to be expected of its reader; a session's is that of its lists. What is synced
ever more rarely, with all else each minute:

- **histories**: what is known of the user, what was seen included;
- **weights**: what the model has learnt. New items are in the lists by their content, and withdrawn ones are not, as
  the delta over a version has it;
- **catalogue**: which items there are. New ones wait for the sync; withdrawn ones are recommended, and worth nothing;
- **everything**: all three.

Whoever comes, and for how long, is the same in all lives of a seed, and so is the model on the first day: it is trained
on the town's past. Never syncing weights is never training. Gains are relative to never syncing, the median over seeds
with the least and the most.
"""


def write_report(folder: Path) -> Path:
    """Write the page and the plots; where the page lies.

    Raises:
        BenchmarkError: a file is no run.
    """
    replays, lives = read_records(folder)
    PLOTS.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context(_STYLE):
        if replays:
            _save(_log_figure(_by_log(replays)), LOG_PLOT)
        if lives:
            _save(_town_figure(_by_life(lives)), TOWN_PLOT)
    DOCUMENT.write_text(render(replays, lives))
    return DOCUMENT


def render(replays: Sequence[Replayed], lives: Sequence[Lived]) -> str:
    """The page."""
    parts = [_HEAD, _LOG]
    if replays:
        parts += [f"![Recall@10 by the interval between syncs](plots/{LOG_PLOT}.svg)", ""]
    for (data, seed), of in _by_log(replays).items():
        one = next(iter(of.values()))
        parts += [
            f"### {data}, seed {seed}",
            "",
            f"The last {one.days:g} days: {one.moments:,} moments of {one.users:,} users.",
            "",
        ]
        for replay in of.values():
            parts += _log_table(replay)
    parts += [] if replays else [_NOT_RUN]
    parts += [_TOWN]
    if lives:
        parts += [f"![Worth of a session by the interval between syncs](plots/{TOWN_PLOT}.svg)", ""]
        parts += _town_section(_by_life(lives))
    parts += [] if lives else [_NOT_RUN]
    return "\n".join([*parts, *_where([*replays, *lives])]).rstrip("\n") + "\n"


def _by_log(replays: Sequence[Replayed]) -> dict[tuple[str, int], dict[str, Replayed]]:
    """Of each data set and seed: histories and weights."""
    found: dict[tuple[str, int], dict[str, Replayed]] = {}
    for replay in sorted(replays, key=lambda r: (r.data, r.seed, r.what)):
        found.setdefault((replay.data, replay.seed), {})[replay.what] = replay
    return found


def _by_life(lives: Sequence[Lived]) -> dict[str, dict[int, Lived]]:
    """Of each life: by seed."""
    found: dict[str, dict[int, Lived]] = {}
    for lived in sorted(lives, key=lambda one: one.seed):
        found.setdefault(lived.life, {})[lived.seed] = lived
    return found


def _log_table(replay: Replayed) -> list[str]:
    what = replay.what.capitalize()
    verdict = "the rarer the sync, the less is found" if monotone([r.recall for r in replay.rows]) else "not monotone"
    rounds = f"; {replay.rounds:,} rounds of training" if replay.rounds else ""
    return [
        f"| {what} synced at each | Recall@10 | Gain over never |",
        "|---|---:|---:|",
        *(f"| {r.sync} | {r.recall:.4f} | {r.gain:+.1%} [{r.low:+.1%} to {r.high:+.1%}] |" for r in replay.rows),
        "",
        f"{what}: {verdict}{rounds}.",
        "",
    ]


def _of_part(lives: Mapping[str, Mapping[int, Lived]], part: str) -> dict[str, Mapping[int, Lived]]:
    """By sync, of the seeds that all of them have; each minute is one life, whatever the part."""
    names = {sync: "minute" if sync == "minute" else f"{part}-{sync}" for sync in SYNCS}
    there = {sync: lives[name] for sync, name in names.items() if name in lives}
    seeds = sorted(set.intersection(*(set(by_seed) for by_seed in there.values()))) if there else []
    return {sync: {seed: by_seed[seed] for seed in seeds} for sync, by_seed in there.items()}


def _town_section(lives: Mapping[str, Mapping[int, Lived]]) -> list[str]:
    one = next(iter(next(iter(lives.values())).values()))
    town = one.config["town"]
    seeds = sorted({seed for of in lives.values() for seed in of})
    lines = [
        f"{town['inhabitants']:,} inhabitants, {town['items']:,} items, "
        f"{town['new_items_per_minute'] * 1_440:,.0f} new ones a day in place of as many, "
        f"{one.days:g} days with about {one.sessions / one.days:,.0f} sessions a day; "
        f"seeds {', '.join(map(str, seeds))}.",
        "",
    ]
    for part in PARTS:
        of = _of_part(lives, part)
        if len(of) < 2 or not (seeds := sorted(next(iter(of.values())))):
            continue
        lines += [
            f"| {part.capitalize()} synced each | Worth of a session | Of the best | Gain over never |",
            "|---|---:|---:|---:|",
        ]
        for sync, by_seed in of.items():
            gains = [by_seed[seed].reward / of["never"][seed].reward - 1 for seed in seeds if "never" in of]
            gain = f"{statistics.median(gains):+.1%} [{min(gains):+.1%} to {max(gains):+.1%}]" if gains else "-"
            share = statistics.median(lived.of_best for lived in by_seed.values())
            lines.append(f"| {sync} | {_median(by_seed):.3f} | {share:.1%} | {gain} |")
        worth = [_median(by_seed) for by_seed in of.values()]
        verdict = "the rarer the sync, the less a session is worth" if monotone(worth) else "not monotone"
        lines += ["", f"{part.capitalize()}, seeds {', '.join(map(str, seeds))}: {verdict}.", ""]
    return lines


def _median(by_seed: Mapping[int, Lived]) -> float:
    return statistics.median(lived.reward for lived in by_seed.values())


def _where(runs: Sequence[Replayed | Lived]) -> list[str]:
    commits: dict[str, dict[str, None]] = {}
    for run in runs:
        commits.setdefault(str(run.machine), {})[run.commit] = None
    lines = [f"- {place}; commits {', '.join(sorted(of))}." for place, of in commits.items()]
    return ["## Where\n", *lines] if lines else []


def _log_figure(logs: Mapping[tuple[str, int], Mapping[str, Replayed]]) -> Figure:
    figure = Figure(figsize=(7.0, 2.8), layout="constrained")
    axes = figure.subplots()
    of = next(iter(logs.values()))
    syncs = list(dict.fromkeys(row.sync for replay in of.values() for row in replay.rows))
    for what, replay in of.items():
        x = [syncs.index(row.sync) for row in replay.rows]
        axes.plot(x, [row.recall for row in replay.rows], "o-", color=_COLOURS[what], label=what)
    _label(axes, syncs, "recall@10")
    return figure


def _town_figure(lives: Mapping[str, Mapping[int, Lived]]) -> Figure:
    figure = Figure(figsize=(7.0, 2.8), layout="constrained")
    axes = figure.subplots()
    for part in PARTS:
        of = _of_part(lives, part)
        if len(of) < 2:
            continue
        x = [SYNCS.index(sync) for sync in of]
        rewards = [[lived.reward for lived in by_seed.values()] for by_seed in of.values()]
        axes.plot(x, [statistics.median(r) for r in rewards], "o-", color=_COLOURS[part], label=part)
        axes.fill_between(x, [min(r) for r in rewards], [max(r) for r in rewards], color=_COLOURS[part], alpha=0.12)
    _label(axes, SYNCS, "worth of a session")
    return figure


def _label(axes: Axes, syncs: Sequence[str], y: str) -> None:
    axes.set_xticks(range(len(syncs)), syncs)
    axes.set_xlabel("synced at each")
    axes.set_ylabel(y)
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)


def _save(figure: Figure, name: str) -> None:
    figure.savefig(PLOTS / f"{name}.svg", format="svg", metadata={"Date": None})
