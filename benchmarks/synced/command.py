"""`python -m benchmarks.synced`: what freshness is worth, on a real log and in the simulated town; docs/freshness.md.

python -m benchmarks.synced --data ../data/kuairand_pure    # the last days of a log, played again
python -m benchmarks.synced --town                          # the town in closed loop
python -m benchmarks.synced --town --lives minute everything-day    # some of it
python -m benchmarks.synced --town --list                   # what is done and what remains; starts nothing
python -m benchmarks.synced --report
"""

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

from benchmarks.quality.process import use_all_cores
from benchmarks.result import BenchmarkError, commit, machine, rounded
from benchmarks.synced.record import RESULTS, Lived, Replayed, What, lived_name, replayed_name, synced
from benchmarks.synced.report import write_report
from serving.terminal import Steps, console, errors, stoppable
from streaming.process import keep_freed_memory

if TYPE_CHECKING:
    from benchmarks.synced.replay import Replay
    from benchmarks.synced.town import Opening

RARER: Final = ("hour", "day", "never")
LIVES: Final[dict[str, dict[str, str]]] = {
    "minute": {},
    **{f"{part}-{sync}": {part: sync} for part in ("histories", "weights", "catalogue") for sync in RARER},
    **{f"everything-{sync}": dict.fromkeys(("histories", "weights", "catalogue"), sync) for sync in RARER},
}
"""By name: what is synced more rarely than each minute."""
_DAY_S: Final = 86_400.0
_WHATS: Final[tuple[What, ...]] = ("histories", "weights")


@dataclass(frozen=True)
class _Planned:
    name: str
    run: Callable[[], Replayed | Lived]


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit code: 2 where the log is at fault, 130 when interrupted."""
    options = _parse(arguments)
    planned = [] if options.report else list(_plan(options))
    remaining = [run for run in planned if not (options.out / f"{run.name}.json").exists()]
    if options.list:
        for run in planned:
            console.print(f"{'to do' if run in remaining else 'done '} {run.name}", highlight=False)
        return 0
    keep_freed_memory()
    use_all_cores()
    options.out.mkdir(parents=True, exist_ok=True)
    try:
        with stoppable():
            for run in remaining:
                path = options.out / f"{run.name}.json"
                path.write_text(run.run().model_dump_json(indent=1) + "\n")
                console.print(f"written: {path}", highlight=False, soft_wrap=True)
        if options.report or options.out == RESULTS:
            console.print(f"written: {write_report(options.out)}", highlight=False, soft_wrap=True)
    except (BenchmarkError, ValueError) as error:
        errors.print(f"synced: {error}", highlight=False, soft_wrap=True)
        return 2
    except KeyboardInterrupt:
        errors.print("synced: interrupted; the same command goes on from the last whole run")
        return 130
    return 0


def _plan(options: argparse.Namespace) -> Iterator[_Planned]:
    """All runs that are asked for; those of a seed follow each other, and share what they begin with."""
    if options.data is not None:
        name = options.data.resolve().name
        for seed in options.seeds or (0,):
            replay = cache(lambda seed=seed: _opened(options, seed))
            for what in _WHATS:
                yield _Planned(
                    replayed_name(name, what, seed), lambda what=what, replay=replay: _replay(options, replay(), what)
                )
    if options.town:
        for seed in options.seeds or (0, 1, 2):
            opening = cache(lambda seed=seed: _opening(options, seed))
            for life in options.lives or LIVES:
                yield _Planned(lived_name(life, seed), lambda life=life, opening=opening: _live(opening(), life))


def _opened(options: argparse.Namespace, seed: int) -> "Replay":
    from benchmarks.quality.models import MODELS, catalogue_config  # noqa: PLC0415 - after the set-up
    from benchmarks.synced.replay import Replay  # noqa: PLC0415
    from pinrec.protocols import UserLog  # noqa: PLC0415
    from streaming.log_columns import read_log_columns  # noqa: PLC0415

    recipe = MODELS["pinrec"].config_for(options.data.resolve().name, "disjoint", None)
    found = read_log_columns(options.data, config=catalogue_config(recipe))
    log = UserLog.of(found.events, found.catalogue, found.vocabulary)
    begin = float(log.events.timestamp.max()) - (options.days or 3) * _DAY_S
    replay = Replay(log, recipe, begin, options.most, seed)
    if not len(replay.moments):
        raise BenchmarkError("--days: nobody with a past engages with anything new in that time")
    return replay


def _replay(options: argparse.Namespace, replay: "Replay", what: What) -> Replayed:
    began, steps = time.monotonic(), Steps()
    replay.progress = steps
    try:
        rows = synced(replay.histories() if what == "histories" else replay.weights())
    finally:
        steps.pause()
    line = ", ".join(f"{row.sync} {row.recall:.4f} ({row.gain:+.1%})" for row in rows)
    console.print(f"{what}: {line}", highlight=False, soft_wrap=True)
    return Replayed(
        data=options.data.resolve().name,
        what=what,
        seed=replay.seed,
        days=options.days or 3,
        moments=len(replay.moments),
        users=len(set(replay.log.events.user[replay.moments.row].tolist())),
        rounds=replay.rounds if what == "weights" else 0,
        rows=rows,
        seconds=round(time.monotonic() - began, 1),
        machine=machine(Path.cwd()),
        commit=commit(),
    )


def _opening(options: argparse.Namespace, seed: int) -> "Opening":
    from benchmarks.synced.town import Life, Opening  # noqa: PLC0415 - after the set-up

    return Opening(Life() if options.days is None else Life(days=options.days), seed)


def _live(opening: "Opening", life: str) -> Lived:
    from benchmarks.quality.models import plain  # noqa: PLC0415 - after the set-up
    from benchmarks.synced.closed_loop import ClosedLoop  # noqa: PLC0415

    began, steps = time.monotonic(), Steps()
    try:
        lived = ClosedLoop(opening, LIVES[life]).run(lambda done, of: steps(life, done, of))
    finally:
        steps.pause()
    reward = lived.reward.sum() / max(1, lived.sessions.sum())
    console.print(f"{life}: {reward:.3f} a session, {lived.of_best:.1%} of the best", highlight=False, soft_wrap=True)
    return Lived(
        life=life,
        sync=LIVES[life],
        seed=opening.seed,
        days=opening.life.days,
        sessions=int(lived.sessions.sum()),
        reward=rounded(reward),
        hours=[rounded(x) for x in (lived.reward / lived.sessions.clip(1)).tolist()],
        of_best=rounded(lived.of_best),
        rounds=lived.rounds,
        config=plain(opening.life),
        seconds=round(time.monotonic() - began, 1),
        machine=machine(Path.cwd()),
        commit=commit(),
    )


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.synced",
        description="What freshness is worth: takes the runs that have no JSON yet, and makes docs/freshness.md.",
        epilog="Example: python -m benchmarks.synced --data ../data/kuairand_pure --town",
    )
    parser.add_argument("--data", type=Path, help="folder of a log, whose last days are played again")
    parser.add_argument("--town", action="store_true", help="the simulated town in closed loop")
    parser.add_argument("--days", type=float, help="played again, or lived through (default: 3)")
    parser.add_argument("--most", type=int, default=6_000, help="moments of a log tested, a random sample")
    parser.add_argument("--seeds", type=int, nargs="+", help="default: 0 for a log; 0 1 2 for the town")
    parser.add_argument("--lives", nargs="+", choices=LIVES, metavar="LIFE", help="of the town; default: all of them")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the JSONs")
    parser.add_argument("--list", action="store_true", help="what is done and what remains; starts nothing")
    parser.add_argument("--report", action="store_true", help="only make the page from the JSONs")
    options = parser.parse_args(arguments)
    if not (options.data or options.town or options.report):
        parser.error("say what: --data PATH, --town or --report")
    return options
