"""The tables and the picture of budgets: the sweep, and what a budget of one outcome does against the default."""

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any, Final

import numpy as np

from benchmarks.quality.budgets_record import DEFAULT, STEPS, SWEEPS, BudgetRun, Sweep, named, outcomes, swept
from benchmarks.quality.ratios import Ratio, ratios, spearman
from benchmarks.quality.words import DATA, NOT_RUN, relative, share, table, verdict

WITH: Final = "recall of {}"
WITHOUT: Final = "recall of targets without {}"
RATE: Final = "{} rate of hits"
Key = tuple[str, str, str, int]

_HEAD: Final = """\
## Budgets

The lists of trained PinRec-MT,OC as serving makes them, of 10 and of 10 E distinct items, under other budgets than
the default one of the tables above. *Recall of an outcome* is the mean over users of the share of their targets that
met with the outcome which the list holds; *rate of hits* the share of all targets found that met with it: of what is
retrieved and was met later, so many were liked. Intervals are by bootstrap over users, the same draws for every
budget. A figure that is to rise or fall along a sweep does so (*met*) where no step goes the wrong way and the interval
of its rank correlation with the share (Spearman) leaves zero out; where that holds zero the verdict is *none*.
"""


class Pooled:
    """Figures of all runs of a data set, by (kind, outcome, budget, size). A user counts once, whatever the seeds."""

    def __init__(self, runs: Sequence[BudgetRun]) -> None:
        first = runs[0]
        self.sizes, self.runs, self.outcomes = first.sizes, len(runs), outcomes(runs)
        self.sweeps = [
            (falling, others)
            for falling, others in SWEEPS.get(first.dataset, ())
            if {falling, *others} <= set(self.outcomes)
        ]
        alone = [DEFAULT, *(named({name: 1.0}) for name in self.outcomes)]
        keys = dict.fromkeys(product((WITH, WITHOUT, RATE), self.outcomes, alone, self.sizes))
        for sweep in self.sweeps:
            points = [named(shares) for shares in swept(sweep)]
            keys |= dict.fromkeys(product((WITH, RATE), _sides(sweep), points, self.sizes))
        self._of = dict(zip(keys, ratios(*_sums(runs, list(keys))), strict=True))

    def of(self, kind: str, outcome: str, budget: str, size: int) -> Ratio | None:
        """One figure; None where no user has it."""
        return self._of[kind, outcome, budget, size]

    def along(self, sweep: Sweep, kind: str, outcome: str, size: int) -> list[Ratio | None]:
        """The figure along a sweep, from nothing to all for its first outcome."""
        return [self.of(kind, outcome, named(shares), size) for shares in swept(sweep)]


def _sums(runs: Sequence[BudgetRun], keys: Sequence[Key]) -> tuple[np.ndarray, np.ndarray]:
    """Numerators and denominators of each user, float64[users, keys] each."""
    users = np.unique(np.concatenate([run.users() for run in runs]))
    numerator, denominator = np.zeros((2, len(users), len(keys)))
    for run in runs:
        at = np.searchsorted(users, run.users())
        for column, (kind, outcome, budget, size) in enumerate(keys):
            met, hit = run.met_with(outcome), run.hit(budget, size)
            of = ~met if kind == WITHOUT else met
            hits = np.bincount(at, of & hit, len(users))
            if kind == RATE:
                numerator[:, column] += hits
                denominator[:, column] += np.bincount(at, hit, len(users))
            else:
                targets = np.bincount(at, of, len(users))
                numerator[:, column] += hits / np.maximum(targets, 1)
                denominator[:, column] += targets > 0
    return numerator, denominator


def budgets_section(
    runs: Sequence[BudgetRun], pictures: Mapping[str, str], configs: Mapping[str, Any] | None = None
) -> list[str]:
    """All tables.

    Args:
        pictures: the line that shows the sweeps, by data set.
        configs: of the runs whose models they are, by name, as these are recorded now.
    """
    parts = [_HEAD]
    for dataset in SWEEPS:
        parts.append(f"### {DATA[dataset]}, budgets\n")
        of = [run for run in runs if run.dataset == dataset]
        if not of:
            parts.append(f"{NOT_RUN}\n")
            continue
        pooled = Pooled(of)
        earlier = any((configs or {}).get(run.of, run.config) != run.config for run in of)
        which = " Of models trained by an earlier recipe than those of the tables above." if earlier else ""
        parts += [f"{len(of)} {'run' if len(of) == 1 else 'runs'}.{which}\n", *_claims(pooled)]
        for sweep in pooled.sweeps:
            parts += _sweep(pooled, sweep)
        parts += [f"{pictures[dataset]}\n"] if dataset in pictures else []
    return parts


def _sides(sweep: Sweep) -> tuple[str, ...]:
    falling, others = sweep
    return falling, *others


def _sweep(pooled: Pooled, sweep: Sweep) -> list[str]:
    """The points of a sweep, for the longer lists, and for both how each figure goes along it."""
    (falling, others), size = sweep, pooled.sizes[-1]
    figures = list(product((WITH, RATE), _sides(sweep)))
    points = [pooled.along(sweep, kind, name, size) for kind, name in figures]
    rows = [[f"{10 * step} %", *(_value(row[step]) for row in points)] for step in range(STEPS)]
    head = [f"Share of {falling}", *(kind.format(name) for kind, name in figures)]
    monotone = [_monotone(pooled, sweep, n, kind, name) for n in pooled.sizes for kind, name in figures]
    how = ["Figure", "Lists of", f"No {falling}", f"All {falling}", "Spearman", "Steps the wrong way",
           f"With the share of {falling}", "Verdict"]  # fmt: skip
    return [
        f"**{falling} against {' and '.join(others)}**, in lists of {size}; what {falling} does not have goes to "
        f"{' and '.join(others)}{', evenly' if len(others) > 1 else ''}.\n",
        *table(head, rows),
        *table(how, monotone),
    ]


def _monotone(pooled: Pooled, sweep: Sweep, size: int, kind: str, name: str) -> list[str]:
    points, rises = pooled.along(sweep, kind, name, size), name == sweep[0]
    row, claim = [kind.format(name), str(size)], "rises" if rises else "falls"
    there = [point for point in points if point is not None]
    if len(there) < len(points):
        return [*row, "n/a", "", "", "", claim, ""]
    value = np.array([point.value for point in there])
    rank, drawn = float(spearman(value[None])[0]), spearman(np.stack([point.drawn for point in there], axis=1))
    low, high = np.quantile(drawn, (0.025, 0.975))
    wrong = int(((np.diff(value) < 0) if rises else (np.diff(value) > 0)).sum())
    met = (low > 0 if rises else high < 0) and not wrong
    outcome = "met" if met else "none" if low <= 0 <= high else "not met"
    trend = f"{rank:+.2f} [{low:+.2f} to {high:+.2f}]"
    return [*row, share(value[0]), share(value[-1]), trend, f"{wrong} of {STEPS - 1}", claim, outcome]


def _claims(pooled: Pooled) -> list[str]:
    rows = []
    for size, outcome in product(pooled.sizes, pooled.outcomes):
        expected = [(WITH, outcome, False), (WITHOUT, outcome, True), (RATE, outcome, False)]
        expected += [(RATE, name, True) for name in _opposite(pooled, outcome)]
        for kind, name, lower in expected:
            budget = named({outcome: 1.0})
            default, there = (pooled.of(kind, name, b, size) for b in (DEFAULT, budget))
            row = [budget, str(size), kind.format(name), _value(default), _value(there)]
            claim = "lower" if lower else "higher"
            if default is None or there is None:
                rows.append([*row, "n/a", claim, ""])
                continue
            found = there.less(default)
            rows.append([*row, relative(found), claim, verdict(found, lower=lower)])
    head = ["Budget", "Lists of", "Figure", "Default budget", "This budget", "Difference", "Claim", "Verdict"]
    text = "A matched outcome lifts its own recall, a mismatched one lowers it; and so the rates of what is found.\n"
    return [text, *table(head, rows)]


def _opposite(pooled: Pooled, outcome: str) -> list[str]:
    """The other sides of the sweeps that an outcome is in."""
    found = [other for falling, others in pooled.sweeps if falling == outcome for other in others]
    found += [falling for falling, others in pooled.sweeps if outcome in others]
    return list(dict.fromkeys(found))


def _value(figure: Ratio | None) -> str:
    return "n/a" if figure is None else share(figure.value)
