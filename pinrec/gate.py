"""The gate: whether a candidate may serve. What its files must be, `Bundle.load` has checked by then.

Each check that fails is a `Refusal` with its figure and its bound:

index             share of the exact best 100 that the index finds, as measured when it was built
recall            of the candidate on new events, before it was trained on them, against the serving version's; less
                  what it may lose, and what chance may take away
earlier_recall    the same on events from before the round: what a round of bad events destroys shows there, as
                  nothing predicts those themselves
diversity         distinct items in the lists of a fixed sample of users, against those of the serving version
item_share        share of these lists that the most frequent item is in
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Final

import numpy as np

from pinrec.bundle import Bundle
from pinrec.config import GateSettings, GenerationConfig
from pinrec.dataset import EventColumns
from pinrec.generation import generate
from pinrec.history import ROW, History
from pinrec.requests import GenerationRequest
from pinrec.verdicts import Refusal

LIST: Final = 10
"""Longest list of a user of the sample; a tenth of a small catalogue."""
LEAST_USERS: Final = 20
"""Of fewer users' lists nothing can be said."""
_BATCH: Final = 32
_AFTER_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Judgement:
    """What the gate says of a candidate.

    Attributes:
        refusals: checks that it failed; none = it may serve.
        passed_over: checks that could not be made, one sentence each.
    """

    refusals: tuple[Refusal, ...]
    passed_over: tuple[str, ...] = ()


def judge(
    candidate: Bundle,
    serving: Bundle | None,
    histories: Sequence[History],
    limits: GateSettings,
    generation: GenerationConfig,
) -> Judgement:
    """All checks of a candidate.

    Args:
        serving: what it would take the place of; None = nothing serves, and no comparison is made.
        candidate: its manifest's metrics hold recall@10 and earlier_recall@10 of the serving version, the same of the
            candidate (candidate_ before the name), and prequential_events and earlier_events, how many were predicted.
        histories: of the sample of users (`sample_histories`).
        generation: how lists are made.
    """
    refusals: list[Refusal] = []
    passed_over: list[str] = []
    if (found := candidate.manifest.index.recall) < limits.index_recall:
        refusals.append(
            Refusal(
                check="index", figure=found, bound=limits.index_recall, message="the index misses too many of the best"
            )
        )
    for check, events in (("recall", "prequential_events"), ("earlier_recall", "earlier_events")):
        _recall(candidate.manifest.metrics, check, events, limits, refusals, passed_over)
    if serving is None:
        passed_over.append("diversity: nothing serves yet to compare with")
    elif len(histories) < LEAST_USERS:
        passed_over.append(f"diversity: {len(histories)} users are too few to tell")
    else:
        refusals += _degenerate(candidate, serving, histories, limits, generation)
    return Judgement(tuple(refusals), tuple(passed_over))


def _recall(
    metrics: dict[str, float],
    check: str,
    events: str,
    limits: GateSettings,
    refusals: list[Refusal],
    passed_over: list[str],
) -> None:
    serving, candidate = metrics.get(f"{check}@10"), metrics.get(f"candidate_{check}@10")
    count = metrics.get(events, 0.0)
    if serving is None or candidate is None or count < limits.recall_events:
        passed_over.append(f"{check}: {count:.0f} events predicted by both versions, {limits.recall_events} are needed")
        return
    # What chance may take away is no loss: of a recall of some thousandths a few hits decide. As of two samples of
    # targets; both versions have the same ones, so chance takes less, and the bound is rather too low than too high.
    chance = NormalDist().inv_cdf(limits.recall_confidence) * math.sqrt((serving + candidate) / count)
    if candidate < (bound := serving * (1 - limits.recall_drop) - chance):
        message = (
            f"recall@10 on {count:.0f} events is worse than the serving version's {serving:.4g}, by more than "
            f"{limits.recall_drop:.0%} and chance"
        )
        refusals.append(Refusal(check=check, figure=candidate, bound=bound, message=message))


@dataclass(frozen=True, slots=True)
class _Lists:
    """How much the lists of a sample of users have in common.

    Attributes:
        diversity: distinct items, over as many as there could be.
        item_share: share of the lists that the most frequent item is in.
    """

    diversity: float
    item_share: float
    item_id: str

    @classmethod
    def of(cls, bundle: Bundle, histories: Sequence[History], generation: GenerationConfig) -> "_Lists":
        """Items of a history may be listed: without them, any two users' lists differ."""
        items = len(bundle.catalogue)
        k = max(1, min(LIST, items // 10))
        requests = [
            GenerationRequest(history, k, float(history.rows["timestamp"][-1]) + _AFTER_S, exclude_seen=False)
            for history in histories
        ]
        shown: Counter[int] = Counter()
        for at in range(0, len(requests), _BATCH):
            for listed in generate(bundle, requests[at : at + _BATCH], generation):
                shown.update(one.row for one in listed)
        row, times = shown.most_common(1)[0]
        diversity = len(shown) / min(items, k * len(histories))
        return cls(diversity, times / len(histories), bundle.catalogue.item_ids[row])


def _degenerate(
    candidate: Bundle,
    serving: Bundle,
    histories: Sequence[History],
    limits: GateSettings,
    generation: GenerationConfig,
) -> list[Refusal]:
    """Lists that hardly depend on the user, where the serving version's do more."""
    generation = generation.model_copy(update={"explore_share": 0.0})
    new, old = (_Lists.of(bundle, histories, generation) for bundle in (candidate, serving))
    refusals = []
    if new.diversity < (bound := limits.diversity * old.diversity):
        message = f"distinct items in the lists of {len(histories)} users, over as many as there could be"
        refusals.append(Refusal(check="diversity", figure=new.diversity, bound=bound, message=message))
    # What everybody gets from the version that serves, everybody may get.
    if new.item_share > (bound := max(limits.item_share, old.item_share)):
        message = f"share of the lists of {len(histories)} users that {new.item_id[:64]} is in"
        refusals.append(Refusal(check="item_share", figure=new.item_share, bound=bound, message=message))
    return refusals


def sample_histories(events: EventColumns, users: int, length: int) -> list[History]:
    """Histories of the most recently active users, at most so many: the same ones for the same events.

    Args:
        events: in log order.
        length: events of a history at most.
    """
    newest, at = np.unique(events.user[::-1], return_index=True)
    chosen = newest[np.argsort(at, kind="stable")[:users]]
    order = np.lexsort((events.timestamp, events.user))
    sorted_user = events.user[order]
    histories = []
    for user in chosen.tolist():
        lo, hi = np.searchsorted(sorted_user, user), np.searchsorted(sorted_user, user, side="right")
        mine = order[max(lo, hi - length) : hi]
        rows = np.zeros(len(mine), ROW)
        for name in ("timestamp", "item_hash", "action", "surface", "is_query"):
            rows[name] = getattr(events, name)[mine]
        texts = [events.queries[query] if query >= 0 else "" for query in events.query[mine].tolist()]
        histories.append(History.of_rows(rows, texts))
    return histories
