"""Figures of several runs of a model together, and of two models on the same users."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from benchmarks.quality.record import Run
from pinrec.measures import Difference, paired_bootstrap

Runs = Sequence[Run]


def figure(runs: Runs, name: str) -> float | None:
    """Mean over all test users of the runs; None where no run has it."""
    per_user = [figures[name] for _, figures in (run.per_user() for run in runs) if name in figures]
    if per_user:
        return float(np.nanmean(np.concatenate(per_user)))
    have = [run for run in runs if name in run.test]
    if not have:
        return None
    return float(np.average([run.test[name] for run in have], weights=[run.test["users"] for run in have]))


def common(a: Runs, b: Runs) -> tuple[list[Run], list[Run]]:
    """The runs of both models on the same fold with the same seed, in the same order."""
    of_a, of_b = ({(run.fold, run.seed): run for run in runs} for runs in (a, b))
    both = sorted(of_a.keys() & of_b.keys(), key=str)
    return [of_a[key] for key in both], [of_b[key] for key in both]


def difference(a: Runs, b: Runs, name: str) -> Difference | None:
    """`b` less `a` with its interval over users, on the folds and seeds that both have; None where there are none.

    A user's figure is the mean over seeds, so that a user counts once.
    """
    a, b = common(a, b)
    if not a:
        return None
    (users_a, of_a), (users_b, of_b) = _by_user(a, name), _by_user(b, name)
    if not np.array_equal(users_a, users_b):
        raise ValueError(f"{a[0].name} and {b[0].name} tested other users; take both runs again on the same log")
    return paired_bootstrap(of_a, of_b)


def interval(runs: Runs, name: str) -> Difference:
    """The mean with its interval over users, as a difference from nothing."""
    _, values = _by_user(runs, name)
    return paired_bootstrap(np.zeros_like(values), values)


def _by_user(runs: Runs, name: str) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Ascending users, and the mean of each over the runs that tested it."""
    tested = [run.per_user() for run in runs]
    users = np.concatenate([user for user, _ in tested])
    values = np.concatenate([figures[name] for _, figures in tested])
    distinct, at = np.unique(users, return_inverse=True)
    return distinct, np.bincount(at, values) / np.bincount(at)
