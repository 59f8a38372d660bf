"""`python -m benchmarks.synced`: play the last days of a log again, and make docs/freshness.md.

python -m benchmarks.synced --data ../data/kuairand_pure --days 3
python -m benchmarks.synced --report
"""

import argparse
import time
from pathlib import Path
from typing import Final

from benchmarks.quality.process import use_all_cores
from benchmarks.result import BenchmarkError, commit, machine
from benchmarks.synced.record import RESULTS, Replayed, synced
from benchmarks.synced.report import write_report
from serving.terminal import Steps, console, errors
from streaming.process import keep_freed_memory

_DAY_S: Final = 86_400.0


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit code: 2 where the log is at fault, 130 when interrupted."""
    options = _parse(arguments)
    try:
        if not options.report:
            replayed = _replay(options)
            options.out.mkdir(parents=True, exist_ok=True)
            (options.out / f"{replayed.name}.json").write_text(replayed.model_dump_json(indent=2) + "\n")
        if options.report or options.out == RESULTS:
            console.print(f"written: {write_report(options.out)}", highlight=False, soft_wrap=True)
    except (BenchmarkError, ValueError) as error:
        errors.print(f"synced: {error}", highlight=False, soft_wrap=True)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def _replay(options: argparse.Namespace) -> Replayed:
    keep_freed_memory()
    use_all_cores()
    from benchmarks.quality.models import MODELS, catalogue_config  # noqa: PLC0415 - after the set-up
    from benchmarks.synced.replay import Replay  # noqa: PLC0415
    from pinrec.protocols import UserLog  # noqa: PLC0415
    from streaming.log_columns import read_log_columns  # noqa: PLC0415

    if options.data is None:
        raise BenchmarkError("--data: name the folder of a log, such as ../data/kuairand_pure")
    began, name = time.monotonic(), options.data.resolve().name
    recipe = MODELS["pinrec"].config_for(name, "disjoint", None)
    found = read_log_columns(options.data, config=catalogue_config(recipe))
    log = UserLog.of(found.events, found.catalogue, found.vocabulary)
    steps = Steps()
    try:
        begin = float(log.events.timestamp.max()) - options.days * _DAY_S
        replay = Replay(log, recipe, begin, options.most, options.seed, steps)
        if not len(replay.moments):
            raise BenchmarkError(f"--days {options.days:g}: nobody with a past engages with anything new in that time")
        histories, weights = map(synced, replay.run())
    finally:
        steps.pause()
    for what, rows in (("histories", histories), ("weights", weights)):
        line = ", ".join(f"{row.sync} {row.recall:.4f} ({row.gain:+.1%})" for row in rows)
        console.print(f"{what}: {line}", highlight=False, soft_wrap=True)
    return Replayed(
        data=name,
        seed=options.seed,
        days=options.days,
        moments=len(replay.moments),
        users=len(set(log.events.user[replay.moments.row].tolist())),
        rounds=replay.rounds,
        histories=histories,
        weights=weights,
        seconds=round(time.monotonic() - began, 1),
        machine=machine(Path.cwd()),
        commit=commit(),
    )


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.synced",
        description="What freshness is worth on a real log, in its own time.",
        epilog="Example: python -m benchmarks.synced --data ../data/kuairand_pure --days 3",
    )
    parser.add_argument("--data", type=Path, help="folder of the log")
    parser.add_argument("--days", type=float, default=3.0, help="played again, the last of the log (default: 3)")
    parser.add_argument("--most", type=int, default=6_000, help="moments tested, a random sample (default: 6000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the JSONs")
    parser.add_argument("--report", action="store_true", help="only make the page from the JSONs")
    return parser.parse_args(arguments)
