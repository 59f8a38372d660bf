"""`python -m benchmarks`: take the measures, write a JSON each, and make docs/performance.md and docs/capacity.md.

python -m benchmarks                      # all but the long ones; some twenty minutes on a quiet machine of two cores
python -m benchmarks --only P5 --quick    # is it in order? half a minute; quick figures are kept apart
python -m benchmarks --only P6 --minutes 60   # and P6b: an hour of swaps under load
python -m benchmarks --only P11 --minutes 20  # memory, lag and failures of 20 minutes
python -m benchmarks --only P7            # a million items published three times; six minutes
python -m benchmarks --only P12 --only P13    # two replicas; a million users and items; some five minutes
python -m benchmarks --report             # docs/performance.md again, from the JSONs
"""

import argparse
import shutil
import tempfile
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

from benchmarks import (
    catalogue,
    fastest,
    footprint,
    freshness,
    generation,
    index,
    ingest,
    publishing,
    queries,
    replicas,
    scale,
    soak,
    swaps,
)
from benchmarks.application import Application
from benchmarks.report import write_report
from benchmarks.result import ROOT, BenchmarkError, Result
from benchmarks.usual import measure as usual
from serving.stack import Progress
from serving.terminal import Steps, console, errors, stoppable
from streaming.simulator import TownConfig

T = TypeVar("T")

IDS: Final = ("P2", "P3", "P8", "P10", "P5", "P1", "P1b", "P4", "P6c", "P4b")
"""In the order they run; together they take less than 25 minutes."""
LONG: Final = ("P6", "P7", "P11", "P12", "P13")
"""Taken only where they are asked for by name."""
_MANY_USERS: Final = TownConfig(inhabitants=100_000, items=100_000, past_events=300_000)
_MANY_ITEMS: Final = TownConfig(inhabitants=1_000, items=100_000, past_events=40_000)
RESULTS: Final = ROOT / "benchmarks" / "results" / "performance"
QUICK_RESULTS: Final = ROOT / ".pinrec" / "benchmarks-quick"


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit code: 1 where a measure failed, 2 where it was not asked properly."""
    options = _parse(arguments)
    out: Path = options.out or (QUICK_RESULTS if options.quick else RESULTS)
    try:
        if not options.report and not _run(options, out):
            return 1
        if options.report or out == RESULTS:  # what is taken elsewhere is a trial, and no document's
            console.print(f"written: {write_report(out)}", highlight=False, soft_wrap=True)
    except BenchmarkError as error:
        errors.print(f"benchmarks: {error}", highlight=False, soft_wrap=True)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def _run(options: argparse.Namespace, out: Path) -> bool:
    """Take the measures and write their JSONs; whether all went well."""
    out.mkdir(parents=True, exist_ok=True)
    wanted = [i for i in (*IDS, *LONG) if i in (options.only or IDS)]
    well = True
    with stoppable(), _work_folder() as work, closing(_measures(wanted, work, options)) as results:
        for result in results:
            if isinstance(result, Exception):
                errors.print(f"failed: {type(result).__name__}: {result}", highlight=False, soft_wrap=True)
                well = False
            else:
                path = out / f"{result.id}.json"
                path.write_text(result.model_dump_json(indent=2) + "\n")
                console.print(f"{_line(result)}; {path}", highlight=False, soft_wrap=True)
    return well


def _measures(ids: list[str], work: Path, options: argparse.Namespace) -> Generator[Result | Exception, None, None]:
    """Each measure's result, or why there is none; one that fails leaves the others their turn."""
    progress, quick = Steps(), bool(options.quick)
    with ExitStack() as stack:
        stack.callback(progress.pause)
        alone: dict[str, Callable[[Path, bool, Progress], Result]] = {
            "P2": generation.measure_new_event,
            "P3": generation.measure_many_embeddings,
            "P8": index.measure,
            "P7": publishing.measure,
            "P10": footprint.measure,
            "P5": ingest.measure,
            "P13": scale.measure,
        }
        for name in ids:
            if name in alone:
                folder = work / name
                folder.mkdir()
                yield _attempt(partial(alone[name], folder, quick, progress))
        if "P6" in ids:
            yield from _alone(swaps.measure, work / "swaps", _MANY_ITEMS, options, progress)
        if "P11" in ids:
            yield from _alone(soak.measure, work / "soak", _MANY_USERS, options, progress)
        live: dict[str, Callable[[Application], Result]] = {
            "P1": lambda running: freshness.measure(running, quick, progress, options.rate),
            "P1b": lambda running: fastest.measure(running, quick, progress),
            "P4": lambda running: queries.measure(running, quick, progress),
            "P6c": lambda running: catalogue.measure(running, quick, progress),
            "P12": lambda running: replicas.measure(running, quick, progress),
            "P4b": lambda running: usual.measure(running, quick, progress),  # the last one: it fills the histories
        }
        wanted = [measure for name, measure in live.items() if name in ids]
        if not wanted:
            return
        application = Application(work / "application", quick, progress)
        stack.callback(application.stop)
        error = _attempt(application.start)
        if isinstance(error, Exception):
            yield error
            return
        for measure in wanted:
            yield _attempt(partial(measure, application))


def _alone(
    measure: Callable[[Application, float, bool, Progress], Result | list[Result]],
    folder: Path,
    town: TownConfig,
    options: argparse.Namespace,
    progress: Progress,
) -> Iterator[Result | Exception]:
    """A long measure, on an application of its own whose trainer publishes."""
    interval_s, minutes = (10.0, 1.0) if options.quick else (60.0, options.minutes)
    application = Application(folder, options.quick, progress, None if options.quick else town, interval_s)
    try:
        error = _attempt(application.start)
        taken = error or _attempt(lambda: measure(application, minutes, options.quick, progress))
    finally:
        application.stop()
    yield from taken if isinstance(taken, list) else [taken]


def _attempt(work: Callable[[], T]) -> T | Exception:
    try:
        return work()
    except Exception as error:  # told by the caller, and the exit code says it
        return error


def _line(result: Result) -> str:
    return (
        f"{result.id} {result.name}: {result.value:g} {result.unit}{_p99(result)}; "
        f"{result.baseline_name}: {result.baseline:g} {result.unit}{_p99(result, 'baseline_')}; "
        f"ratio {result.ratio:g}; goal {result.goal_and_outcome}; {result.seconds:.0f} s"
    )


def _p99(result: Result, whose: str = "") -> str:
    p99 = result.details.get(f"{whose}p99_ms")
    return "" if p99 is None else f" (p99 {p99:g} ms)"


@contextmanager
def _work_folder() -> Iterator[Path]:
    """Beside the state of demos, so that a flush costs what it costs there; removed at the end."""
    parent = ROOT / ".pinrec"
    parent.mkdir(exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="benchmark-", dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure PinRec on this machine, each figure beside a baseline of the same run.",
        epilog="Example: python -m benchmarks --only P5 --quick",
    )
    parser.add_argument("--only", action="append", choices=(*IDS, *LONG), help="this measure; may be repeated")
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it works; changes no document")
    parser.add_argument("--rate", type=_rate, default=100.0, help="events a second of P1 (default: 100)")
    parser.add_argument("--minutes", type=_minutes, default=60.0, help="how long P6 and P11 last (default: 60)")
    where = f"folder of the JSONs (default: {RESULTS.relative_to(ROOT)}); measures in another one change no document"
    parser.add_argument("--out", type=Path, help=where)
    parser.add_argument("--report", action="store_true", help="only make docs/performance.md from the JSONs")
    return parser.parse_args(arguments)


def _rate(text: str) -> float:
    rate = float(text)
    if not 0 < rate <= 10_000:
        raise argparse.ArgumentTypeError("must be more than 0 and at most 10,000 events a second")
    return rate


def _minutes(text: str) -> float:
    minutes = float(text)
    if not 1 <= minutes <= 24 * 60:
        raise argparse.ArgumentTypeError("must be at least 1 minute and at most a day")
    return minutes
