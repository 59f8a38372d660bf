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
    alike_BEE = (e_BED @ e_BED.transpose(0, 2, 1) > threshold) & (outcome_BE[:, :, None] == outcome_BE[:, None, :])
    # Each row of it as one number, a bit an embedding: the walk depends on its own steps, so it goes one by one, and
    # there a few operations on whole numbers cost far less than as many on small arrays.
    packed = np.packbits(alike_BEE, axis=2, bitorder="little")
    width, of_all, embeddings = packed.shape[2], packed.tobytes(), slots_BE.shape[1]
    alike = [int.from_bytes(of_all[at : at + width], "little") for at in range(0, len(of_all), width)]
    return np.array(
        [_merged(slots_E, alike[b * embeddings :][:embeddings]) for b, slots_E in enumerate(slots_BE.tolist())],
        np.int64,
    )


def _merged(slots_E: list[int], alike_E: list[int]) -> list[int]:
    """One request's places; the bits of `alike_E` are the embeddings that each one is like."""
    merged, kept = [0] * len(slots_E), 0
    for i, (mine, alike) in enumerate(zip(slots_E, alike_E, strict=True)):
        if earlier := alike & kept:
            merged[(earlier & -earlier).bit_length() - 1] += mine
        elif mine:
            merged[i] = mine
            kept |= 1 << i
    return merged
