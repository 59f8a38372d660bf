"""The tables of the ranking head."""

from collections.abc import Sequence

from benchmarks.quality.ranking_record import Cost, RankingRun, Time
from benchmarks.quality.words import DATA, percent, share, table

_TIMES = ("head, cache reused", "head, history encoded again", "list without head", "list with head")


def ranking_section(runs: Sequence[RankingRun]) -> list[str]:
    """All tables; nothing where nothing was measured."""
    if not runs:
        return []
    return [
        "## Ranking head\n",
        "The head scores an item by the chances that it meets with the outcomes of the budget, once shown. *Shown*: "
        "the unseen items that a test user was shown after the history, in the order of either score; retrieval's "
        "score is the best inner product with what it would search with. *Retrieved*: the lists of ten against the "
        "targets of the protocol, out of so many candidates for each place. The interval is over users.\n",
        *_gains(runs),
        "Milliseconds of one call for a batch of requests, median (least to most); the head scores "
        f"{runs[0].cost[0].candidates} candidates of each request, on the keys and values that retrieval has cached or "
        "with the history encoded again.\n",
        *table(
            ["Data", "Requests", "Events each", *_TIMES, "Again / reused"], [_row(r, c) for r in runs for c in r.cost]
        ),
    ]


def _gains(runs: Sequence[RankingRun]) -> list[str]:
    rows = []
    for run in runs:
        for name, found in run.gains.items():
            low, high = (percent(x / found.before) if found.before else "n/a" for x in (found.low, found.high))
            rows.append(
                [_name(run), name, f"{found.users:,}", share(found.before), share(found.after), f"{low} to {high}"]
            )
        rows += [
            [_name(run), f"shown ndcg@10, {other}", f"{int(run.shown['users']):,}", share(run.shown[other]), "", ""]
            for other in ("popularity", "random")
        ]
    return table(["Data", "Figure", "Users", "Retrieval's order", "The head's order", "Difference"], rows)


def _row(run: RankingRun, cost: Cost) -> list[str]:
    times = [_time(cost.times[name]) for name in _TIMES]
    return [_name(run), str(cost.batch), f"{cost.events:.0f}", *times, f"{cost.ratio:.1f}"]


def _time(time: Time) -> str:
    return f"{time.median:.3g} ({time.spread[0]:.3g} to {time.spread[1]:.3g})"


def _name(run: RankingRun) -> str:
    return f"{DATA.get(run.dataset, run.dataset)}, fold {run.fold}"
