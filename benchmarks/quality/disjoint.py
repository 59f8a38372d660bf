"""The tables of disjoint users: models, paired differences, outcomes, ablations."""

from collections.abc import Sequence

from benchmarks.quality.compare import common, difference, figure
from benchmarks.quality.plan import ABLATED_FOLDS, ABLATIONS, BASELINES, FOLDS, METHOD, plan
from benchmarks.quality.public import CLAIM, DIVERSITY_LEAD, LEAD
from benchmarks.quality.record import Run
from benchmarks.quality.words import DATA, NOT_RUN, name_of, of_model, percent, share, table

_MAIN = "unordered@10"


def disjoint_section(runs: Sequence[Run], dataset: str) -> list[str]:
    """All tables of one data set."""
    return [
        f"## {DATA[dataset]}, disjoint users\n",
        *_models(runs, dataset),
        "### Differences\n",
        *_differences(runs),
        "### By outcome\n",
        *_outcomes(runs),
    ]


def ablations(runs: Sequence[Run]) -> list[str]:
    """Each variant against PinRec whole, on the folds that both have."""
    whole = [run for run in of_model(runs, "pinrec") if run.fold in ABLATED_FOLDS]
    rows = []
    for model in ABLATIONS:
        without, ours = common(of_model(runs, model), whole)
        if not without:
            rows.append([name_of(model), NOT_RUN, "", "", CLAIM[model]])
            continue
        rows.append(
            [name_of(model), share(figure(without, _MAIN)), share(figure(ours, _MAIN)),
             _difference(ours, without, _MAIN), CLAIM[model]]
        )  # fmt: skip
    head = ["Variant", "unordered@10", "PinRec-MT,OC on the same folds", "Difference", "The paper's claim"]
    return [
        f"## Ablations on KuaiRand-Pure, {len(ABLATED_FOLDS)} folds\n",
        "A variant is PinRec-MT,OC less one part, trained and selected as it is. A negative difference speaks for the "
        "part.\n",
        *table(head, rows),
    ]


def _models(runs: Sequence[Run], dataset: str) -> list[str]:
    figures = (_MAIN, _equal(runs), "recall@10", "ndcg@10", "diversity")
    planned = [p for p in plan() if (p.dataset, p.protocol) == (dataset, "disjoint")]
    rows = []
    for model in (*BASELINES, *METHOD[::-1]):
        found = of_model(runs, model)
        taken = f"{len(found)} of {sum(p.model == model for p in planned)}"
        if not found:
            rows.append([name_of(model), NOT_RUN, *[""] * (len(figures) + 1)])
            continue
        distinct = sum(run.test["distinct_items"] for run in found) / len(found)
        rows.append([name_of(model), taken, *(share(figure(found, name)) for name in figures), f"{distinct:,.0f}"])
    return table(["Model", _unit(dataset), *figures, "Distinct items in lists of 10"], rows)


def _equal(runs: Sequence[Run]) -> str:
    """Name of the figure at an equal number of distinct items."""
    return next((name for run in runs for name in run.test if name.startswith("equal@")), "equal@n")


def _unit(dataset: str) -> str:
    return "Folds" if FOLDS[dataset] == 5 else "Seeds"


def _differences(runs: Sequence[Run]) -> list[str]:
    rows = []
    for name in (_MAIN, _equal(runs)):
        for (a, b), goal in LEAD.items():
            rows.append(_compared(runs, a, b, name, goal))
        found = {model: figure(of_model(runs, model), name) for model in BASELINES}
        if best := max((m for m in BASELINES if found[m] is not None), key=lambda m: found[m] or 0.0, default=None):
            rows += [_compared(runs, best, model, name, 0.0) for model in METHOD[::-1]]
    rows.append(_compared(runs, "pinrec_oc", "pinrec", "diversity", DIVERSITY_LEAD))
    return table(["Compared", "Figure", "On", "From", "To", "Difference, relative", "Goal", "Met"], rows)


def _compared(runs: Sequence[Run], a: str, b: str, name: str, goal: float) -> list[str]:
    wanted = f"at least {percent(goal)}" if goal else "more"
    of_a, of_b = common(of_model(runs, a), of_model(runs, b))
    names = [f"{name_of(b)} over {name_of(a)}", name]
    if not of_a:
        return [*names, NOT_RUN, "", "", "", wanted, ""]
    found = difference(of_a, of_b, name)
    assert found is not None
    met = found.low > 0 and found.relative >= goal
    on = f"{len(of_a)} {'run' if len(of_a) == 1 else 'runs'} each"
    means = [share(found.mean_a), share(found.mean_b)]
    return [*names, on, *means, _difference(of_a, of_b, name), wanted, "yes" if met else "no"]


def _difference(a: Sequence[Run], b: Sequence[Run], name: str) -> str:
    """`+3.1 % [+1.2 % to +5.0 %]`, or that there is none."""
    found = difference(a, b, name)
    if found is None:
        return NOT_RUN
    if not found.mean_a:
        return "n/a"
    low, high = percent(found.low / found.mean_a), percent(found.high / found.mean_a)
    if not found.decided:
        return f"none ({percent(found.relative)} [{low} to {high}])"
    return f"{percent(found.relative)} [{low} to {high}]"


def _outcomes(runs: Sequence[Run]) -> list[str]:
    targets: dict[str, float] = {}
    for run in runs:
        for name in run.test:
            if name.startswith(f"{_MAIN}:"):
                targets[name] = max(targets.get(name, 0.0), float(_users_with(run, name)))
    if not targets:
        return [f"{NOT_RUN}\n"]
    names = sorted(targets, key=lambda name: -targets[name])
    models = [model for model in (*BASELINES, *METHOD[::-1]) if of_model(runs, model)]
    rows = [[name_of(m), *(share(figure(of_model(runs, m), name)) for name in names)] for m in models]
    return [
        "Unordered recall@10 on the targets that met with an outcome, those that most users have first.\n",
        *table(["Model", *(name.partition(":")[2] for name in names)], rows),
    ]


def _users_with(run: Run, name: str) -> int:
    _, figures = run.per_user()
    return int((figures[name] == figures[name]).sum()) if name in figures else 0
