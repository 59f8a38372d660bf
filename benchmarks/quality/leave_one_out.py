"""The tables of leave-one-out: against public figures, and public figures reproduced."""

from collections.abc import Sequence
from statistics import mean

from benchmarks.quality.admission import Admission
from benchmarks.quality.plan import BASELINES, plan
from benchmarks.quality.public import FLOOR, GOAL, READS, REPRODUCED_WITHIN, WHY_NOT
from benchmarks.quality.record import Run
from benchmarks.quality.words import DATA, NOT_RUN, name_of, of_model, percent, share, table


def leave_one_out_section(runs: Sequence[Run], dataset: str) -> list[str]:
    """Models on one data set, the best public figure and the goal."""
    planned = dict.fromkeys(p.model for p in plan() if (p.dataset, p.protocol) == (dataset, "loo"))
    models = [*planned, *(model for model in dict.fromkeys(run.model for run in runs) if model not in planned)]
    ordered = sorted(models, key=lambda model: -_mean(of_model(runs, model), "ndcg@10"))
    admission = Admission(runs, dataset)
    rows = [_row(of_model(runs, model), model, admission) for model in ordered]
    best, (hr, ndcg) = FLOOR[dataset], GOAL[dataset]
    rows += [
        [f"*best public: {best.model} ({best.source})*", share(best.hr), share(best.ndcg), "", "", ""],
        ["*goal*", share(hr), share(ndcg), "", "", ""],
    ]
    head = ["Model", "HR@10", "NDCG@10", "Seeds", "NDCG@10 on validation", "Hours a run"]
    told = [f"{READS[dataset]}\n"] if dataset in READS else []
    legend = admission.legend([model for model in BASELINES if of_model(runs, model)])
    reached = _verdict(of_model(runs, "pinrec"), dataset)
    return [f"### {DATA[dataset]}\n", *table(head, rows), *legend, reached, "", *told]


def reproduced(runs: Sequence[Run]) -> list[str]:
    """Baselines against their own public figures."""
    head = [
        "Model",
        "Data",
        "Public HR@10 / NDCG@10",
        "Here",
        "Off",
        f"At most {REPRODUCED_WITHIN:.0%} below",
        "Source",
    ]
    rows, why = [], []
    for public, (here, off, near) in Admission(runs).rows():
        name = name_of(public.model, "loo")
        figures = f"{share(public.hr)} / {share(public.ndcg)}"
        rows.append([name, DATA[public.dataset], figures, here, off, near, public.source])
        if near == "no":
            reason = WHY_NOT.get((public.dataset, public.model), "not explained yet.")
            why.append(f"{name} on {DATA[public.dataset]}: {reason}\n")
    return ["## Public figures reproduced\n", *table(head, rows), *why]


def _row(runs: Sequence[Run], model: str, admission: Admission) -> list[str]:
    if not runs:
        return [name_of(model, "loo"), NOT_RUN, "", "", "", ""]
    hours = mean(run.seconds for run in runs) / 3600
    valid = mean(run.valid["ndcg@10"] for run in runs)
    return [
        admission.named(model, "loo"),
        _spread(runs, "hr@10"),
        _spread(runs, "ndcg@10"),
        str(len(runs)),
        share(valid),
        f"{hours:.2f}",
    ]


def _spread(runs: Sequence[Run], figure: str) -> str:
    """The mean over seeds, with the least and the most where there are several."""
    values = [run.test[figure] for run in runs]
    text = share(mean(values))
    return text if len(values) == 1 else f"{text} [{share(min(values))} to {share(max(values))}]"


def _mean(runs: Sequence[Run], figure: str) -> float:
    return mean(run.test[figure] for run in runs) if runs else -1.0


def _verdict(runs: Sequence[Run], dataset: str) -> str:
    if not runs:
        return f"{name_of('pinrec', 'loo')} is {NOT_RUN}."
    hr, ndcg = _mean(runs, "hr@10"), _mean(runs, "ndcg@10")
    best, (goal_hr, goal_ndcg) = FLOOR[dataset], GOAL[dataset]
    return (
        f"{name_of('pinrec', 'loo')}, mean of {len(runs)} of 3 seeds: "
        f"{percent(hr / best.hr - 1)} / {percent(ndcg / best.ndcg - 1)} against the best public figures (the floor: "
        f"{_met(hr > best.hr and ndcg > best.ndcg)}), {percent(hr / goal_hr - 1)} / {percent(ndcg / goal_ndcg - 1)} "
        f"against the goal ({_met(hr >= goal_hr and ndcg >= goal_ndcg)})."
    )


def _met(met: bool) -> str:
    return "reached" if met else "not reached"
