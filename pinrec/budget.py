"""How many of a list's places each outcome, and each generated embedding, may fill.

Shape suffixes: B requests, E embeddings of a request in generation order, D width.
"""

import math
from collections.abc import Mapping, Sequence

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
    for name, share in outcomes.items():
        if name not in vocabulary.outcomes:
            raise BudgetError(f"outcomes.{name[:64]}", f"not an outcome; choose from {', '.join(vocabulary.outcomes)}")
        if not math.isfinite(share) or share < 0:
            raise BudgetError(f"outcomes.{name}", f"a share is a finite number of at least 0, not {share}")
    largest = max(outcomes.values(), default=0.0)
    if largest <= 0:
        raise BudgetError("outcomes", "the shares sum to 0; give at least one outcome a share above 0")
    # Dividing by the largest first keeps the sum of huge shares finite.
    relative = {name: outcomes[name] / largest for name in vocabulary.outcomes if outcomes.get(name, 0) > 0}
    total = math.fsum(relative.values())
    return {name: share / total for name, share in sorted(relative.items(), key=lambda pair: -pair[1])}


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
    merged = slots_BE.copy()
    alike_BEE = (e_BED @ e_BED.transpose(0, 2, 1) > threshold) & (outcome_BE[:, :, None] == outcome_BE[:, None, :])
    for i in range(1, merged.shape[1]):
        earlier = alike_BEE[:, i, :i] & (merged[:, :i] > 0)
        request = np.nonzero(earlier.any(1))[0]
        merged[request, earlier[request].argmax(1)] += merged[request, i]
        merged[request, i] = 0
    return merged
