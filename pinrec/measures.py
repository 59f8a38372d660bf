"""Measures of retrieval, for each user first: so that two models can be compared user by user.

Shapes: B users, K places of a list, E embeddings of a user, R retrieved items of an embedding.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from pinrec.protocols import Cases

Rows = NDArray[np.int64]
K: Final = 10
BATCH: Final = 256


class Retriever(Protocol):
    """A model under test, trained. Catalogue rows out; nothing in a case's `seen` may come back."""

    def ranked(self, cases: Cases, k: int) -> Rows:
        """One list of k distinct rows a user, best first: int64[B, k], -1 where there is no more."""
        ...

    def generated(self, cases: Cases, embeddings: int, k: int) -> Rows:
        """What each of a user's `embeddings` retrieves: int64[B, embeddings, k], -1 where there is no more."""
        ...


@dataclass(frozen=True)
class PerUser:
    """What each of B users got; `mean` makes the figures of it.

    Attributes:
        user: int64[B].
        targets: int64[B], how many items were to be found.
        figures: name -> float64[B]; NaN where a user has none (a recall on an outcome without a target).
        distinct: different items in all users' lists of k together.
    """

    user: Rows
    targets: Rows
    figures: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    distinct: int = 0

    def mean(self) -> dict[str, float]:
        """Means over the users that have the figure, with the numbers of distinct items, users and targets."""
        means = {name: float(np.nanmean(v)) if not np.isnan(v).all() else np.nan for name, v in self.figures.items()}
        return means | {
            "distinct_items": float(self.distinct),
            "users": float(len(self.user)),
            "targets": float(self.targets.sum()),
        }


def measure(
    retriever: Retriever,
    cases: Cases,
    embeddings: int = 1,
    k: int = K,
    progress: Callable[[int, int], None] | None = None,
) -> PerUser:
    """Retrieve for every case and compare with its targets.

    Figures, each float64[B], k in place of the letter:
        hr@k: 1 if any target is in the list of k (with a single target this is recall).
        ndcg@k: sum over hits of 1 / log2(1 + rank), over the best such sum.
        recall@k: share of the targets in the list of k.
        With `embeddings` E > 1 also
        unordered@k: share of the targets that any embedding has among its own k (arXiv 2504.10507).
        unordered@k:<action>: the same over the targets that met with this action.
        equal@n: share of the targets in one list of n = E k distinct items, so that every model shows as many.
        diversity: distinct items over all items that the embeddings retrieved.

    Args:
        embeddings: E, how many embeddings every model generates for a user.
        progress: called with (users done, users).
    """
    n = embeddings * k
    names = ["hr", "ndcg", "recall"]
    figures: dict[str, list[NDArray[np.float64]]] = {f"{name}@{k}": [] for name in names}
    listed: list[Rows] = []
    for at, batch in enumerate(cases.batches(BATCH)):
        lists = retriever.ranked(batch, n)
        listed.append(np.unique(lists[:, :k]))
        for name, values in zip(names, _list_figures(lists[:, :k], batch), strict=True):
            figures[f"{name}@{k}"].append(values)
        if embeddings > 1:
            found = retriever.generated(batch, embeddings, k)
            for name, values in _generated_figures(found, lists, batch, k).items():
                figures.setdefault(name, []).append(values)
        if progress is not None:
            progress(min(len(cases), (at + 1) * BATCH), len(cases))
    distinct = np.unique(np.concatenate(listed)) if listed else np.zeros(0, np.int64)
    return PerUser(
        cases.user,
        np.array([len(t) for t in cases.targets], np.int64),
        {name: np.concatenate(values) for name, values in figures.items()},
        int((distinct >= 0).sum()),
    )


def _list_figures(lists_BK: Rows, cases: Cases) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    k = lists_BK.shape[1]
    hit_BK = np.stack([np.isin(row, t) for row, t in zip(lists_BK, cases.targets, strict=True)])
    count = np.array([len(t) for t in cases.targets])
    gain_K = 1 / np.log2(np.arange(k) + 2)
    best = np.concatenate(([0.0], np.cumsum(gain_K)))[np.minimum(count, k)]
    hit = hit_BK.astype(np.float64)
    return hit.max(1), (hit * gain_K).sum(1) / best, hit.sum(1) / count


def _generated_figures(found_BEK: Rows, lists_BN: Rows, cases: Cases, k: int) -> dict[str, NDArray[np.float64]]:
    users, n = len(cases), lists_BN.shape[1]
    unordered, equal, diversity = np.zeros(users), np.zeros(users), np.zeros(users)
    by_action = np.full((len(cases.actions), users), np.nan)
    for b, (targets, outcomes) in enumerate(zip(cases.targets, cases.outcomes, strict=True)):
        retrieved = found_BEK[b][found_BEK[b] >= 0]
        hits = np.isin(targets, retrieved)
        unordered[b], equal[b] = hits.mean(), np.isin(targets, lists_BN[b]).mean()
        diversity[b] = len(np.unique(retrieved)) / max(1, len(retrieved))
        some = outcomes.any(0)
        by_action[some, b] = (outcomes[:, some] * hits[:, None]).sum(0) / outcomes[:, some].sum(0)
    figures = {f"unordered@{k}": unordered, f"equal@{n}": equal, "diversity": diversity}
    return figures | {f"unordered@{k}:{name}": row for name, row in zip(cases.actions, by_action, strict=True)}


@dataclass(frozen=True)
class Difference:
    """A paired difference of means: `b` less `a`, with its 95 % bootstrap interval over users.

    `relative` is the difference over the mean of `a`; `decided` is False where the interval holds zero.
    """

    mean_a: float
    mean_b: float
    low: float
    high: float

    @property
    def difference(self) -> float:
        """Mean of b less mean of a."""
        return self.mean_b - self.mean_a

    @property
    def relative(self) -> float:
        """The difference over the mean of a; NaN where that is 0."""
        return self.difference / self.mean_a if self.mean_a else float("nan")

    @property
    def decided(self) -> bool:
        """Whether the interval leaves zero out."""
        return self.low > 0 or self.high < 0


def paired_bootstrap(a: NDArray[np.float64], b: NDArray[np.float64], draws: int = 2_000, seed: int = 0) -> Difference:
    """Compare two models on the same users (Efron and Tibshirani 1993, percentile interval).

    Args:
        a, b: float64[B], a figure of each user under either model; users without the figure (NaN) are left out.
        draws: resamples of the users, with replacement.
        seed: of the resamples.

    Raises:
        ValueError: the arrays differ in length, or no user has the figure under both.
    """
    if a.shape != b.shape:
        raise ValueError(f"users: {len(a)} and {len(b)} figures; compare models on the same users")
    both = ~(np.isnan(a) | np.isnan(b))
    if not both.any():
        raise ValueError("users: none has this figure under both models")
    a, b = a[both], b[both]
    rng, gain, means = np.random.default_rng(seed), b - a, np.empty(draws)
    for i in range(draws):
        means[i] = gain[rng.integers(0, len(gain), len(gain))].mean()
    low, high = np.quantile(means, (0.025, 0.975))
    return Difference(float(a.mean()), float(b.mean()), float(low), float(high))
