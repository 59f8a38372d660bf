"""How many of a list's places each outcome, and each generated embedding, may fill.

Shape suffixes: B requests, E embeddings of a request in generation order, D width.
"""

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np

from pinrec.config import Vocabulary


class BudgetError(ValueError):
    """A budget that cannot be spent; `field` is at fault and `remedy` says what to send instead."""

    def __init__(self, field: str, remedy: str) -> None:
        super().__init__(f"{field}: {remedy}")
        self.field, self.remedy = field, remedy


def normalised(outcomes: Mapping[str, float], vocabulary: Vocabulary) -> dict[str, float]:
    """A caller's budget as shares that sum to 1, largest first; outcomes with a share of 0 are left out.

    Raises:
        BudgetError: an outcome is not an engaging action, a share is negative or not finite, or all are 0.
    """
    return dict(_normalised(tuple(outcomes.items()), vocabulary.outcomes))


# Most lists are made with one of a few budgets.
@lru_cache(maxsize=1_024)
def _normalised(outcomes: tuple[tuple[str, float], ...], known: tuple[str, ...]) -> tuple[tuple[str, float], ...]:
    for name, share in outcomes:
        if name not in known:
            raise BudgetError(f"outcomes.{name[:64]}", f"not an outcome; choose from {', '.join(known)}")
        if not math.isfinite(share) or share < 0:
            raise BudgetError(f"outcomes.{name}", f"a share is a finite number of at least 0, not {share}")
    shares = dict(outcomes)
    largest = max(shares.values(), default=0.0)
    if largest <= 0:
        raise BudgetError("outcomes", "the shares sum to 0; give at least one outcome a share above 0")
    # Dividing by the largest first keeps the sum of huge shares finite.
    relative = {name: shares[name] / largest for name in known if shares.get(name, 0) > 0}
    total = math.fsum(relative.values())
    return tuple((name, share / total) for name, share in sorted(relative.items(), key=lambda pair: -pair[1]))


def slots(shares: Sequence[float], k: int) -> list[int]:
    """Places of a list of k, split by shares that sum to 1: whole, k together, each less than 1 off its quota.

    The method of largest remainders (Hamilton); of equal remainders the earlier share wins.
    """
    quotas = [share * k for share in shares]
    whole = [math.floor(quota) for quota in quotas]
    by_remainder = sorted(range(len(quotas)), key=lambda i: whole[i] - quotas[i])
    for i in by_remainder[: k - sum(whole)]:
        whole[i] += 1
    assert sum(whole) == k
    return whole


def spread(places: int, embeddings: int) -> np.ndarray:
    """int64[embeddings]: an outcome's places over its embeddings, evenly, the earlier ones first."""
    each, rest = divmod(places, embeddings)
    return each + (np.arange(embeddings) < rest)


@lru_cache(maxsize=1_024)
def aims_of_steps(outcomes: int, steps: int, in_turn: bool) -> np.ndarray:
    """int64[steps, A], not to be written to: which outcomes, by number, each step aims at; -1 where it has fewer.

    All of them in every step; `in_turn`, they are dealt over the steps like cards: one a step where there are enough
    steps, again and again from the first, else as few as leave none out.
    """
    if not in_turn:
        aims_SA = np.tile(np.arange(outcomes), (steps, 1))
    elif outcomes <= steps:
        aims_SA = (np.arange(steps) % outcomes)[:, None]
    else:
        aims_SA = np.arange(steps)[:, None] + steps * np.arange(math.ceil(outcomes / steps))
        aims_SA[aims_SA >= outcomes] = -1
    aims_SA.setflags(write=False)
    return aims_SA


@lru_cache(maxsize=1_024)
def places(outcome_E: tuple[int, ...], shares: tuple[tuple[int, float], ...], k: int) -> np.ndarray:
    """int64[E], not to be written to: k places over outcomes by their shares, then evenly over each one's embeddings.

    Args:
        outcome_E: outcome of each embedding; one that has no share gets no places.
        shares: (outcome, share), shares sum to 1.
    """
    aims_E, places_E = np.array(outcome_E), np.zeros(len(outcome_E), np.int64)
    for (outcome, _), mine in zip(shares, slots([share for _, share in shares], k), strict=True):
        of_outcome = aims_E == outcome
        places_E[of_outcome] = spread(mine, int(of_outcome.sum()))
    places_E.setflags(write=False)
    return places_E


def compress(e_BED: np.ndarray, outcome_BE: np.ndarray, slots_BE: np.ndarray, threshold: float) -> np.ndarray:
    """Merge embeddings that would fetch the same items, so that their places go to one search.

    Walks embeddings in generation order; one whose cosine with an earlier kept one of the same outcome
    exceeds the threshold gives its slots to it (arXiv 2504.10507, embedding compression). Merging stays
    within an outcome: the budget per outcome is the caller's.

    Args:
        e_BED: L2-normalised embeddings.
        outcome_BE: outcome index of each.
        slots_BE: places of each; one without places takes no part.
        threshold: cosine above which two are one.

    Returns:
        int64[B, E] places; every row keeps its sum per outcome.
    """
    from pinrec import list_kernels  # noqa: PLC0415 - compiled where lists are made

    arrays = (list_kernels.plain(x) for x in (e_BED, outcome_BE, slots_BE))
    return list_kernels.compressed(*arrays, threshold)  # type: ignore[no-any-return]
