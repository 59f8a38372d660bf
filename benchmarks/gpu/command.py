"""`python -m benchmarks.gpu`: P9, on a machine with a GPU. It needs neither Kafka nor Ray.

python -m benchmarks.gpu                      # some two minutes
python -m benchmarks.gpu --quick              # is it in order? a small model; changes no document
"""

import argparse
from pathlib import Path

import torch

from benchmarks.command import QUICK_RESULTS, RESULTS
from benchmarks.gpu.measure import FULL, QUICK, measure
from benchmarks.report import write_report
from benchmarks.result import BenchmarkError
from serving.terminal import Steps, console, errors, stoppable


def main(arguments: list[str] | None = None) -> int:
    """The command; returns its exit code: 2 where it cannot be measured, 130 when interrupted."""
    options = _parse(arguments)
    out: Path = options.out or (QUICK_RESULTS if options.quick else RESULTS)
    if not torch.cuda.is_available():
        errors.print("P9 needs a GPU, and torch finds none here; run it on a machine with one", highlight=False)
        return 2
    progress = Steps()
    try:
        with stoppable():
            result = measure(torch.device("cuda"), QUICK if options.quick else FULL, out, options.quick, progress)
        progress.pause()
        out.mkdir(parents=True, exist_ok=True)
        (out / "P9.json").write_text(result.model_dump_json(indent=2) + "\n")
        told = f"P9 {result.name}: {result.value:g} {result.unit}, p90 {result.details['p90_ms']:g} ms"
        console.print(f"{told}; goal {result.goal}: {'met' if result.met else 'not met'}", highlight=False)
        if out == RESULTS:
            console.print(f"written: {write_report(out)}", highlight=False, soft_wrap=True)
    except BenchmarkError as error:
        progress.pause()
        errors.print(f"benchmarks: {error}", highlight=False, soft_wrap=True)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def _parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu",
        description="Measure how many requests a second a large PinRec answers on this machine's GPU, in time.",
        epilog="Example: python -m benchmarks.gpu --quick",
    )
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it works; changes no document")
    parser.add_argument("--out", type=Path, help="folder of the JSON (default: that of the results)")
    return parser.parse_args(arguments)
