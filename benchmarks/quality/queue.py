"""`make quality`: take every run of the plan that has no JSON yet, or go on with it, and write docs/quality.md.

python -m benchmarks.quality.queue --data ../data          # a folder with ml1m, amazon_beauty, kuairand_pure
python -m benchmarks.quality.queue --data ../data --list   # what is done and what remains; starts nothing
"""

import argparse
import fcntl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final

from benchmarks.quality.plan import TOWN, Planned, plan
from benchmarks.quality.record import RESULTS
from benchmarks.quality.report import write_report
from benchmarks.result import ROOT
from serving.terminal import stoppable

_LOCK: Final = ROOT / ".pinrec" / "quality.lock"


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit code: 1 where a run failed, 2 where it was not asked properly."""
    options = _parse(arguments)
    planned = [p for p in plan() if options.only is None or options.only in p.name]
    remaining = [p for p in planned if not (options.out / p.file).exists()]
    if options.list or not remaining:
        for p in planned:
            print("to do" if p in remaining else "done ", p.name)
        print(f"{len(planned) - len(remaining)} of {len(planned)} done")
        return 0
    folders = dict.fromkeys(p.dataset for p in remaining if p.dataset != TOWN)
    missing = [name for name in folders if not (options.data / name).is_dir()]
    if missing:
        print(f"quality: {options.data} has no folder {', '.join(missing)}; say where: DATA=path", file=sys.stderr)
        return 2
    try:
        with stoppable(), _alone() as lock:
            failed = _run(remaining, options.data, options.out, lock)
    except BlockingIOError:
        print("quality: another `make quality` is at work here; two at once would slow each other", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("quality: interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    for name in failed:
        print(f"quality: failed: {name}", file=sys.stderr)
    return 1 if failed else 0


def _run(remaining: list[Planned], data: Path, out: Path, lock: IO[str]) -> list[str]:
    """Each in a process of its own, one after the other; the names of those that failed."""
    failed = []
    for at, planned in enumerate(remaining, 1):
        since = time.monotonic()
        print(f"[{at}/{len(remaining)}] {planned.name}", flush=True)
        command = [sys.executable, "-m", planned.module, *planned.arguments(data), "--out", str(out)]
        # A run holds the lock too: should this process be killed, nobody starts another beside it.
        code = subprocess.run(command, cwd=ROOT, check=False, pass_fds=(lock.fileno(),)).returncode
        if code == 130:
            raise KeyboardInterrupt
        if code:
            failed.append(planned.name)
        elif out == RESULTS:
            write_report(out)
        outcome = f"failed with {code}" if code else "done"
        print(f"[{at}/{len(remaining)}] {planned.name}: {outcome} in {time.monotonic() - since:.0f} s", flush=True)
    return failed


@contextmanager
def _alone() -> Iterator[IO[str]]:
    """The lock, held while it lasts and while a process lives that was given it."""
    _LOCK.parent.mkdir(exist_ok=True)
    with _LOCK.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield file


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quality.queue",
        description="Run, or go on with, everything that docs/quality.md tells of, but training speed, which needs "
        "RecBole (python -m benchmarks.training_speed).",
        epilog="Example: python -m benchmarks.quality.queue --data ../data --only kuairand_pure-disjoint-pinrec",
    )
    parser.add_argument("--data", type=_folder, required=True, help="folder with one folder for each data set")
    parser.add_argument("--out", type=_folder, default=RESULTS, help="folder of the JSONs")
    parser.add_argument("--only", help="runs whose names hold this text")
    parser.add_argument("--list", action="store_true", help="what is done and what remains, in order; starts nothing")
    return parser.parse_args(arguments)


def _folder(text: str) -> Path:
    return Path(text).resolve()


if __name__ == "__main__":
    sys.exit(main())
