"""The tables of disjoint users: models, the method's claims, outcomes, ablations."""

from collections.abc import Sequence
from itertools import pairwise

from benchmarks.quality.admission import Admission
from benchmarks.quality.compare import common, difference, figure
from benchmarks.quality.plan import ABLATED_FOLDS, ABLATIONS, BASELINES, FOLDS, METHOD, plan
from benchmarks.quality.public import CLAIM, DIVERSITY_LEAD, FEATURES, LEAD, READS_DISJOINT, TRIED, UNORDERED_LEAD
from benchmarks.quality.record import Run
from benchmarks.quality.words import DATA, NOT_RUN, name_of, of_model, percent, relative, share, table, verdict

UNORDERED = "unordered@10"
"""Of PinRec's modes alone: a model with one list has its best 10 E distinct items here, and no overlapping tens."""
RECALL = "recall@10"
_ORDER = ("pinrec_uc", "pinrec_oc", "pinrec")


def disjoint_section(runs: Sequence[Run], dataset: str, admission: Admission) -> list[str]:
    """All tables of one data set; baselines are named as by `admission`."""
    return [
        f"## {DATA[dataset]}, disjoint users\n",
        *_models(runs, dataset, admission),
        *admission.legend(),
        " ".join([READS_DISJOINT.format(features=FEATURES[dataset]), *_without_features(runs, admission)]) + "\n",
        "### Claims\n",
        *_claims(runs, admission),
        *([f"{TRIED[dataset]}\n"] if dataset in TRIED else []),
        "### By outcome\n",
        *_outcomes(runs),
    ]


def ablations(runs: Sequence[Run]) -> list[str]:
    """Each variant against PinRec whole, on the folds that both have; and embeddings a step against each other."""
    whole = [run for run in of_model(runs, "pinrec") if run.fold in ABLATED_FOLDS]
    equal, rows = equal_name(runs), []
    for model in ABLATIONS:
        without, ours = common(of_model(runs, model), whole)
        if not without:
            rows.append([name_of(model), NOT_RUN, "", "", "", CLAIM[model]])
            continue
        found = [share(figure(of, equal)) for of in (without, ours)]
        gains = [_difference(ours, without, name) for name in (equal, UNORDERED)]
        rows.append([name_of(model), *found, *gains, CLAIM[model]])
    head = ["Variant", equal, "PinRec-MT,OC on the same folds", "Difference", f"Difference in {UNORDERED}",
            "The paper's claim"]  # fmt: skip
    return [
        f"## Ablations on KuaiRand-Pure, {len(ABLATED_FOLDS)} folds\n",
        "A variant is PinRec-MT,OC less one part, or (*with*) with one more, trained and selected as it is. The last "
        "four have its very weights and make their 16 embeddings otherwise: 16 steps of one (click, a day ahead), 16 "
        "of one (the four outcomes in turn, a day ahead), 4 of four (the four outcomes, a day ahead), one of sixteen "
        "(four outcomes, half a day, 1, 5 and 10 days ahead); PinRec-MT,OC itself makes 2 steps of eight. A negative "
        "difference speaks for the part. *No content* keeps `id_decay`, which holds an item at what its features say "
        "and costs where there are none ([model](model.md#items-and-queries-pinrectowerpy)): part of its difference "
        "is that; the line below it is without either.\n",
        *table(head, rows),
        *_embeddings_a_step(runs, equal),
    ]


def equal_name(runs: Sequence[Run]) -> str:
    """Name of the figure at an equal number of distinct items."""
    return next((name for run in runs for name in run.test if name.startswith("equal@")), "equal@n")


def _embeddings_a_step(runs: Sequence[Run], equal: str) -> list[str]:
    rows = []
    for model in ("e1_in_turn", "e4", "e16"):
        for name in (equal, UNORDERED, "diversity"):
            one, more = common(of_model(runs, "e1"), of_model(runs, model))
            compared = f"{name_of(model)} over {name_of('e1')}"
            if one:
                values = [share(figure(of, name)) for of in (one, more)]
                rows.append([compared, name, *values, _difference(one, more, name)])
            else:
                rows.append([compared, name, NOT_RUN, "", ""])
    return table(["Compared", "Figure", "From", "To", "Difference"], rows)


def _models(runs: Sequence[Run], dataset: str, admission: Admission) -> list[str]:
    figures = (equal_name(runs), RECALL, "ndcg@10", UNORDERED, "diversity")
    planned = [p for p in plan() if (p.dataset, p.protocol) == (dataset, "disjoint")]
    rows = []
    for model in (*BASELINES, *METHOD[::-1]):
        found = of_model(runs, model)
        taken = f"{len(found)} of {sum(p.model == model for p in planned)}"
        if not found:
            rows.append([admission.named(model), NOT_RUN, *[""] * (len(figures) + 1)])
            continue
        distinct = sum(run.test["distinct_items"] for run in found) / len(found)
        comparable = figures if model in METHOD else figures[:-2]
        values = [share(figure(found, name)) if name in comparable else "-" for name in figures]
        rows.append([admission.named(model), taken, *values, f"{distinct:,.0f}"])
    return table(["Model", _unit(dataset), *figures, "Distinct items in lists of 10"], rows)


def _without_features(runs: Sequence[Run], admission: Admission) -> list[str]:
    """Where PinRec stands beside the best baseline when it is told no features."""
    equal, without = equal_name(runs), of_model(runs, "ids_alone")
    best = _best_baseline(runs, equal)
    theirs, ours = common(of_model(runs, best), without) if best else ([], [])
    found = difference(theirs, ours, equal)
    if best is None or found is None:
        return []
    so = ": its lead over the baselines rests on them" if found.high < 0 else ""
    folds = f"the same {len(ours)} folds" if len(ours) > 1 else "the same fold"
    return [
        f"Told no features ({name_of('ids_alone')}, under [ablations](#ablations-on-kuairand-pure-2-folds)), "
        f"{name_of('pinrec')} has {relative(found)} against {admission.named(best)} in {equal} on {folds}{so}."
    ]


def _unit(dataset: str) -> str:
    return "Folds" if FOLDS[dataset] == 5 else "Seeds"


def _claims(runs: Sequence[Run], admission: Admission) -> list[str]:
    equal, rows = equal_name(runs), []
    for name in (equal, UNORDERED, RECALL):
        best = None if name == UNORDERED else _best_baseline(runs, name)
        if name != RECALL:
            rows.append(_order(runs, best, name))
            rows += [_compared(runs, a, b, name, goal) for (a, b), goal in LEAD.items()]
        if best:
            rows += [_compared(runs, best, model, name, 0.0, admission.named(best)) for model in METHOD[::-1]]
    rows.append(_compared(runs, "pinrec_oc", "pinrec", "diversity", DIVERSITY_LEAD))
    notes = []
    one_at_a_time = [model for model in ("e1", "e1_in_turn") if of_model(runs, model)]
    for one in one_at_a_time:
        for name, goal in ((UNORDERED, UNORDERED_LEAD), ("diversity", DIVERSITY_LEAD)):
            rows.append(_compared(runs, one, "pinrec", name, goal))
    if one_at_a_time:
        notes = [
            f"*{name_of('e1')}*: the weights of PinRec-MT,OC, generating one at a time, 16 steps of one (click, a day "
            "ahead), which is what the paper takes its gains in unordered recall and diversity from; *in turn*, the "
            "four outcomes one after the other. PinRec-OC makes its four outcomes in each step.\n"
        ]
    return table(["Claim", "Figure", "On", "From", "To", "Difference", "Goal", "Verdict"], rows) + notes


def _best_baseline(runs: Sequence[Run], name: str) -> str | None:
    found = {model: figure(of_model(runs, model), name) for model in BASELINES}
    return max((m for m in BASELINES if found[m] is not None), key=lambda m: found[m] or 0.0, default=None)


def _order(runs: Sequence[Run], best: str | None, name: str) -> list[str]:
    """The whole chain: not met where a step is reversed; met, or none, only once every model of it has run."""
    chain = [*_ORDER] if name == UNORDERED else [best, *_ORDER]
    claim = " > ".join(name_of(model) for model in _ORDER[::-1]) + ("" if name == UNORDERED else " > every baseline")
    found = [difference(of_model(runs, a), of_model(runs, b), name) if a and b else None for a, b in pairwise(chain)]
    verdicts = {verdict(each) for each in found if each is not None}
    missing = None in found or (name != UNORDERED and not all(of_model(runs, model) for model in BASELINES))
    if missing and "not met" not in verdicts:
        return [claim, name, NOT_RUN, "", "", "", "more", ""]
    outcome = "not met" if "not met" in verdicts else "none" if "none" in verdicts else "met"
    return [claim, name, "", "", "", "", "more", outcome]


def _compared(runs: Sequence[Run], a: str, b: str, name: str, goal: float, named: str = "") -> list[str]:
    wanted = f"at least {percent(goal)}" if goal else "more"
    of_a, of_b = common(of_model(runs, a), of_model(runs, b))
    names = [f"{name_of(b)} over {named or name_of(a)}", name]
    found = difference(of_a, of_b, name)
    if found is None:
        return [*names, NOT_RUN, "", "", "", wanted, ""]
    on = f"{len(of_a)} {'run' if len(of_a) == 1 else 'runs'} each"
    return [*names, on, share(found.mean_a), share(found.mean_b), relative(found), wanted, verdict(found, goal)]


def _difference(a: Sequence[Run], b: Sequence[Run], name: str) -> str:
    """`+3.1 % [+1.2 % to +5.0 %]`, or that there is none."""
    found = difference(a, b, name)
    if found is None:
        return NOT_RUN
    return relative(found) if found.decided else f"none ({relative(found)})"


def _outcomes(runs: Sequence[Run]) -> list[str]:
    targets: dict[str, float] = {}
    for run in (run for model in METHOD for run in of_model(runs, model)):
        for name in run.test:
            if name.startswith(f"{UNORDERED}:"):
                targets[name] = max(targets.get(name, 0.0), float(_users_with(run, name)))
    if not targets:
        return [f"{NOT_RUN}\n"]
    names = sorted(targets, key=lambda name: -targets[name])
    models = [model for model in METHOD[::-1] if of_model(runs, model)]
    rows = [[name_of(m), *(share(figure(of_model(runs, m), name)) for name in names)] for m in models]
    return [
        "Unordered recall@10 on the targets that met with an outcome, those that most users have first.\n",
        *table(["Model", *(name.partition(":")[2] for name in names)], rows),
    ]


def _users_with(run: Run, name: str) -> int:
    _, figures = run.per_user()
    return int((figures[name] == figures[name]).sum()) if name in figures else 0
