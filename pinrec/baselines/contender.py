"""What every model in a comparison is: it is made for a split, fitted epoch by epoch, and retrieves."""

from typing import Protocol

import numpy as np
from torch import Tensor

from pinrec.measures import Retriever, Rows
from pinrec.protocols import Cases


class Contender(Retriever, Protocol):
    """A model under comparison. It reads only the rows of the split that may be trained on, and the histories of cases.

    A contender made with the same split, configuration and seed, and loaded with what `state` returned after epoch
    e, goes on exactly as one that was never interrupted: no randomness outlives an epoch (seed it by (seed, epoch)).

    Attributes:
        epochs: how many epochs its configuration asks for; 0 where there is nothing to fit.
        epoch: how many are done.
    """

    epochs: int
    epoch: int

    def fit_epoch(self) -> float:
        """Train one more epoch; returns its mean loss."""
        ...

    def state(self) -> dict[str, Tensor]:
        """Weights, optimiser and the number of epochs done, as tensors that later epochs do not change."""
        ...

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Go on from what `state` returned."""
        ...


def top_unseen(scores_BN: Tensor, cases: Cases, k: int) -> Rows:
    """The k best rows of each user that the case has not seen: int64[B, k], -1 where there are no more.

    Ties go to the lower row, so that every model and machine breaks them alike.

    Args:
        scores_BN: float32, a score for every catalogue row; changed in place.
    """
    scores = scores_BN.cpu().numpy()
    for row, seen in zip(scores, cases.seen, strict=True):
        row[seen] = -np.inf
    k_there = min(k, scores.shape[1])
    best = np.argpartition(-scores, k_there - 1, 1)[:, :k_there] if k_there < scores.shape[1] else None
    if best is None:
        best = np.tile(np.arange(scores.shape[1]), (len(scores), 1))
    else:
        # What ties with the last place is decided by row too.
        edge = np.take_along_axis(scores, best, 1).min(1)
        for b in np.flatnonzero((scores >= edge[:, None]).sum(1) > k_there):
            tied = np.flatnonzero(scores[b] >= edge[b])
            best[b] = tied[np.lexsort((tied, -scores[b, tied]))][:k_there]
    values = np.take_along_axis(scores, best, 1)
    order = np.lexsort((best, -values), axis=1)
    rows, values = np.take_along_axis(best, order, 1), np.take_along_axis(values, order, 1)
    rows = np.where(np.isneginf(values), -1, rows)
    return np.pad(rows, ((0, 0), (0, k - k_there)), constant_values=-1)


def one_list(retriever: Retriever, cases: Cases, embeddings: int, k: int) -> Rows:
    """`generated` of a model with one list: its best embeddings x k rows, all distinct, cut into embeddings."""
    return retriever.ranked(cases, embeddings * k).reshape(len(cases), embeddings, k)
