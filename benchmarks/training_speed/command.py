"""`python -m benchmarks.training_speed`: how fast PinRec trains beside RecBole's SASRec, in one run on one CPU.

python -m benchmarks.training_speed --data ../data/ml1m            # some five minutes on a quiet machine of two cores
python -m benchmarks.training_speed --data ../data/ml1m --quick    # is it in order? quick figures are kept apart
"""

import argparse
from pathlib import Path
from typing import Final

from benchmarks.quality.record import RESULTS
from benchmarks.quality.report import write_report
from benchmarks.result import ROOT, BenchmarkError, Result
from benchmarks.training_speed.measure import measure
from benchmarks.training_speed.record import FOLDER
from serving.terminal import Steps, console, errors, stoppable

WORK: Final = ROOT / ".pinrec" / "training-speed"


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit code: 2 where it cannot be measured, 130 when interrupted."""
    options = _parse(arguments)
    out: Path = options.out or (WORK / "quick" if options.quick else FOLDER)
    progress = Steps()
    try:
        with stoppable():
            result = measure(options.data, WORK, options.quick, progress)
        progress.pause()
        out.mkdir(parents=True, exist_ok=True)
        path = out / f"{options.data.resolve().name}.json"
        path.write_text(result.model_dump_json(indent=2) + "\n")
        _say(f"{_line(result)}; {path}")
        if out == FOLDER:
            _say(f"written: {write_report(RESULTS)}")
    except (BenchmarkError, ValueError) as error:
        progress.pause()
        errors.print(f"training speed: {error}", highlight=False, soft_wrap=True)
        return 2
    except KeyboardInterrupt:
        progress.pause()
        errors.print("training speed: interrupted; the same command begins again", highlight=False, soft_wrap=True)
        return 130
    return 0


def _line(result: Result) -> str:
    elsewhere = result.details["every_position_per_s"]
    return (
        f"PinRec {result.value:,g} {result.unit}; {result.baseline_name}: {result.baseline:,g} ({result.ratio:g}x); "
        f"its network at every position: {elsewhere:,g} ({result.value / elsewhere:.1f}x); "
        f"goal {result.goal}: {'met' if result.met else 'not met'}; {result.seconds:.0f} s"
    )


def _say(text: str) -> None:
    console.print(text, highlight=False, soft_wrap=True)


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.training_speed",
        description=(
            "Train PinRec and RecBole's SASRec in turn on the same events, and compare the predictions that each "
            "learns from in a second. RecBole is installed into an environment of its own, below .pinrec/. On ML-1M "
            "it takes some 16 GB of memory."
        ),
        epilog="Example: python -m benchmarks.training_speed --data ../data/ml1m --quick",
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with interactions.csv.gz, in the plain form")
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it works; changes no document")
    parser.add_argument("--out", type=Path, help="folder of the JSON (default: that of the results)")
    return parser.parse_args(arguments)
