"""What a list is asked for with, and what it is made of."""

from dataclasses import dataclass, field
from typing import Final

import numpy as np

from pinrec.config import GenerationConfig
from pinrec.history import History

ANY: Final = -1
"""The index of "no outcome", "any surface" and "any offset" in the head, and of "no row"."""


class RequestError(ValueError):
    """A request that cannot be answered; `field` is at fault and `remedy` says what to send instead."""

    def __init__(self, field: str, remedy: str) -> None:
        super().__init__(f"{field}: {remedy}")
        self.field, self.remedy = field, remedy


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One list to make.

    Attributes:
        history: the user's events; may be None or empty only where there is a context.
        k: items wanted.
        now: epoch seconds.
        outcomes: budget by outcome name; None = the configured or trained shares.
        surface: vocabulary index of where the list is shown; None = any.
        context_item: the item the user looks at; it is never in the list.
        context_query: what the user searches for.
        exclude: item ids that must not come back.
        exclude_seen: leave out every item of the history.
        categories: if any, an item must be in at least one of them.
        user_id: whose keys and values may be kept for the next time (`pinrec.states`); None = nobody's.
        context_vector: float32[D], the context item's, where it is not what the bundle makes of it.
    """

    history: History | None
    k: int
    now: float
    outcomes: dict[str, float] | None = None
    surface: int | None = None
    context_item: str | None = None
    context_query: str | None = None
    exclude: frozenset[str] = frozenset()
    exclude_seen: bool = True
    categories: frozenset[str] = frozenset()
    user_id: str | None = None
    context_vector: np.ndarray | None = field(default=None, compare=False)

    @property
    def context(self) -> int:
        """Virtual events behind the history: a search, an item that is looked at."""
        return (self.context_item is not None) + (self.context_query is not None)


@dataclass(slots=True)
class Candidate:
    """One item of a list and the embedding that found it; nulls where nothing was aimed at.

    Attributes:
        row: of the catalogue, or behind its last one of the delta (`pinrec.delta.View`).
        score: inner product with the embedding, of -1 to 1, or with several embeddings of the outcome the soft maximum
            of theirs (`pinrec.pooling.Pools.filled`). Where the ranking head ordered the list, the probabilities
            that the item, once shown, meets with each outcome of the request, weighed by their shares: 0 to 1. In a
            list of popular items 1 / rank.
        outcome: name of the outcome aimed at.
        offset_s: seconds from now aimed at.
        step: decode step, from 0.
        explored: a new item in a place set aside for such (`pinrec.exploration`); its score is 0.
    """

    row: int
    item_id: str
    score: float
    outcome: str | None = None
    offset_s: float | None = None
    step: int | None = None
    explored: bool = False


def check(request: GenerationRequest, config: GenerationConfig) -> None:
    """Refuse what cannot be generated for.

    Raises:
        RequestError: k out of range, or neither history nor context.
    """
    if not 1 <= request.k <= config.max_k:
        raise RequestError("k", f"must be from 1 to {config.max_k}, not {request.k}")
    if not request.history and request.context_item is None and request.context_query is None:
        raise RequestError("history", "is empty; answer unknown users with popular items")
