"""What the searches for one batch found, pooled by outcome: all requests at once.

Shape suffixes: B requests, E embeddings of a request in generation order, Q embeddings that are searched, K results of
a search, G groups (a request and one of its outcomes), C embeddings of a group, M items of a group, D width.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pinrec.delta import View
from pinrec.requests import ANY

_BEHIND: Final = np.iinfo(np.int64).max  # sorts behind every row


@dataclass(frozen=True, slots=True)
class Found:
    """Results of one search: `score_QK` and `item_QK` of the embeddings `at_Q` of the requests `request_Q`.

    Requests are ascending, and so are the embeddings of each. Rows are ANY behind the last.
    """

    request_Q: NDArray[np.int64]
    at_Q: NDArray[np.int64]
    score_QK: NDArray[np.float32]
    item_QK: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Pools:
    """The items found for each outcome of each request, those that a request refuses left out.

    Attributes:
        request_G: int64, ascending.
        places_G: int64, places of the outcome.
        item_GM: int64, rows in any order; ANY where there is none.
        score_GM: float32, how well each fits the outcome's embeddings together (`pooled`); -inf where there is none.
        at_GM: int64, the embedding that fits it best.
    """

    request_G: NDArray[np.int64]
    places_G: NDArray[np.int64]
    item_GM: NDArray[np.int64]
    score_GM: NDArray[np.float32]
    at_GM: NDArray[np.int64]

    def without(self, request_R: NDArray[np.int64], row_R: NDArray[np.int64]) -> "Pools":
        """The same less the rows that requests refuse: pairs, in any order."""
        if not len(row_R):
            return self
        size = max(int(self.item_GM.max(initial=0)), int(row_R.max())) + 1
        refused = np.sort(request_R * size + row_R)
        pair_GM = self.request_G[:, None] * size + self.item_GM
        at_GM = np.minimum(np.searchsorted(refused, pair_GM), len(refused) - 1)
        return self._less(refused[at_GM] == pair_GM)

    def only(self, request: int, allowed: NDArray[np.bool_]) -> "Pools":
        """The same with a request's rows among the allowed ones: bool, by row."""
        mine = (self.request_G == request)[:, None]
        return self._less(mine & ~allowed[self.item_GM])

    def _less(self, gone_GM: NDArray[np.bool_]) -> "Pools":
        return Pools(
            self.request_G,
            self.places_G,
            np.where(gone_GM, ANY, self.item_GM),
            np.where(gone_GM, np.float32(-np.inf), self.score_GM),
            self.at_GM,
        )

    def best(self, most: int) -> "Pools":
        """The best of each group, `most` at the most, in descending order of their scores."""
        order = np.argsort(-self.score_GM, axis=1, kind="stable")[:, :most]
        return Pools(
            self.request_G,
            self.places_G,
            np.take_along_axis(self.item_GM, order, 1),
            np.take_along_axis(self.score_GM, order, 1),
            np.take_along_axis(self.at_GM, order, 1),
        )


def pooled(
    view: View,
    e_BED: NDArray[np.float32],
    outcome_BE: NDArray[np.int64],
    slots_BE: NDArray[np.int64],
    found: Found,
) -> Pools:
    """Pool what each outcome's embeddings found, and score it by all of them.

    The embeddings of an outcome differ in step and time offset: each predicts what comes then. With the temperature
    t and weights w_e by their places, an item's score is t log sum_e w_e exp(<e, x> / t): a soft maximum of the
    inner products, and the inner product of a lone embedding.
    """
    request_Q, at_Q = found.request_Q, found.at_Q
    slots_Q = slots_BE[request_Q, at_Q]
    member_GC = _groups(request_Q, outcome_BE[request_Q, at_Q])
    there_GC = member_GC >= 0
    slots_GC = np.where(there_GC, slots_Q[member_GC], 0)
    places_G, request_G, at_GC = slots_GC.sum(1), request_Q[member_GC[:, 0]], at_Q[member_GC]
    if member_GC.shape[1] == 1:
        item_GM, score_GM = found.item_QK[member_GC[:, 0]], found.score_QK[member_GC[:, 0]]
        score_GM = np.where(item_GM == ANY, np.float32(-np.inf), score_GM)
        return Pools(request_G, places_G, item_GM, score_GM, np.broadcast_to(at_GC, item_GM.shape))
    item_GM = _distinct(np.where(there_GC[..., None], found.item_QK[member_GC], ANY).reshape(len(member_GC), -1))
    x_GMD = view.vectors(np.maximum(item_GM, 0).ravel()).reshape(*item_GM.shape, -1)
    fit_GCM = e_BED[request_G[:, None], at_GC] @ x_GMD.transpose(0, 2, 1)
    fit_GCM[~there_GC] = -np.inf
    top_GM = fit_GCM.max(1)
    temperature = np.float32(view.bundle.model.temperature)
    weight_GC = (slots_GC / places_G[:, None]).astype(np.float32)
    mean_GM = np.einsum("gc,gcm->gm", weight_GC, np.exp((fit_GCM - top_GM[:, None]) / temperature))
    score_GM = np.where(item_GM == ANY, np.float32(-np.inf), top_GM + temperature * np.log(mean_GM))
    return Pools(request_G, places_G, item_GM, score_GM, np.take_along_axis(at_GC, fit_GCM.argmax(1), 1))


def _groups(request_Q: NDArray[np.int64], outcome_Q: NDArray[np.int64]) -> NDArray[np.int64]:
    """int64[G, C]: which of the Q are in each group, -1 behind the last; groups in the order of their first members."""
    key_Q = request_Q * (int(outcome_Q.max(initial=0)) + 2) + outcome_Q + 1
    _, first, group_Q = np.unique(key_Q, return_index=True, return_inverse=True)
    group_Q = np.argsort(np.argsort(first))[group_Q]
    order = np.argsort(group_Q, kind="stable")
    count_G = np.bincount(group_Q)
    start_G = np.cumsum(count_G) - count_G
    member_GC = np.full((len(count_G), int(count_G.max(initial=1))), -1)
    member_GC[group_Q[order], np.arange(len(order)) - start_G[group_Q[order]]] = order
    return member_GC


def _distinct(item_GM: NDArray[np.int64]) -> NDArray[np.int64]:
    """Each group's rows once, ascending; ANY behind the last, and at least once."""
    ascending = np.sort(item_GM, axis=1) if item_GM.size else np.full((len(item_GM), 1), ANY)
    again = np.zeros(ascending.shape, np.bool_)
    again[:, 1:] = ascending[:, 1:] == ascending[:, :-1]
    ascending[again | (ascending == ANY)] = _BEHIND
    ascending.sort(axis=1)
    ascending = ascending[:, : max(1, int((ascending != _BEHIND).sum(1).max(initial=0)))]
    return np.where(ascending == _BEHIND, ANY, ascending)
