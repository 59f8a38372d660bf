"""What the commands share: a process that trains on a CPU, its arguments, and how it ends."""

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks.quality.record import RESULTS, TRIALS
from benchmarks.result import BenchmarkError


def use_all_cores() -> None:
    """One torch thread for each core this process may use, unless OMP_NUM_THREADS says otherwise."""
    import torch  # noqa: PLC0415 - it allocates, and must come after `keep_freed_memory`

    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(len(os.sched_getaffinity(0)))


def ended(name: str, take: Callable[[], None], again: str) -> int:
    """Take a measure; the exit code: 2 where the log or the settings are at fault, 130 when interrupted.

    Args:
        name: of the measure, for what is said on the standard error.
        again: what the same command does after an interruption.
    """
    try:
        take()
    except (BenchmarkError, ValueError, ModuleNotFoundError) as error:
        print(f"quality: {name}: {error}", file=sys.stderr, flush=True)
        return 2
    except KeyboardInterrupt:
        print(f"quality: {name}: interrupted; the same command {again}", file=sys.stderr, flush=True)
        return 130
    return 0


def add_trial(parser: argparse.ArgumentParser, kept: str) -> None:
    """`--epochs` and `--out`; `results` tells where a JSON goes by them."""
    parser.add_argument("--epochs", type=_positive, help="in place of the model's own: a trial, kept apart")
    parser.add_argument("--out", type=Path, help=kept)


def results(options: argparse.Namespace) -> Path:
    """The folder asked for, or that of the results; a trial of other epochs stays out of them."""
    out: Path = options.out or (RESULTS if options.epochs is None else TRIALS)
    return out


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError("must be a whole number from 1")
    return int(text)
