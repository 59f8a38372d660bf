"""What the searches for one batch found, pooled by outcome: all requests at once.

Shape suffixes: B requests, E embeddings of a request in generation order, Q embeddings that are searched, K results of
a search, G groups (a request and one of its outcomes), C embeddings of a group, M items of a group, R
refusals, T items that are taken, D width.
"""

from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from pinrec.delta import View
from pinrec.requests import ANY

_BEHIND: Final = np.iinfo(np.int64).max  # sorts behind every row
_STRIDE: Final = np.uint64(0x9E3779B97F4A7C15)  # odd, and its multiples lie far apart


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
        at_GC: int64, its embeddings.
        item_GM: int64, rows in any order; ANY where there is none.
        score_GM: float32, how well each fits the outcome's embeddings together (`pooled`); -inf where there is none.
        fit_GCM: float32, how well it fits each of them; -inf behind an outcome's last.
    """

    request_G: NDArray[np.int64]
    places_G: NDArray[np.int64]
    at_GC: NDArray[np.int64]
    item_GM: NDArray[np.int64]
    score_GM: NDArray[np.float32]
    fit_GCM: NDArray[np.float32]

    def without(self, view: View, request_R: NDArray[np.int64], hash_R: NDArray[np.uint64]) -> "Pools":
        """The same less the items that requests refuse: pairs of a request and an item's hash, in any order."""
        if not len(hash_R):
            return self
        refused = np.sort(_pair(request_R, hash_R))
        pair_GM = _pair(self.request_G[:, None], view.hashes(self.item_GM))
        at_GM = np.minimum(np.searchsorted(refused, pair_GM), len(refused) - 1)
        return self._less(refused[at_GM] == pair_GM)

    def only(self, request: int, allowed: NDArray[np.bool_]) -> "Pools":
        """The same with a request's rows among the allowed ones: bool, by row."""
        mine = (self.request_G == request)[:, None]
        return self._less(mine & ~allowed[self.item_GM])

    def _less(self, gone_GM: NDArray[np.bool_]) -> "Pools":
        return replace(
            self,
            item_GM=np.where(gone_GM, ANY, self.item_GM),
            score_GM=np.where(gone_GM, np.float32(-np.inf), self.score_GM),
        )

    def best(self, most: int) -> NDArray[np.int64]:
        """int64[G, most at the most]: places of each group's items in descending order of their scores."""
        return np.argsort(-self.score_GM, axis=1, kind="stable")[:, :most]

    def aimed(self, group_T: NDArray[np.int64], place_T: NDArray[np.int64]) -> NDArray[np.int64]:
        """int64[T]: of the items at such places of groups, the embedding that each fits best."""
        return self.at_GC[group_T, self.fit_GCM[group_T, :, place_T].argmax(1)]  # type: ignore[no-any-return]


def _pair(request: NDArray[np.int64], hashes: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """A request and the hash of an item as one number: such numbers meet by chance as rarely as two hashes do."""
    return hashes + request.astype(np.uint64) * _STRIDE


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
    member_GC = _groups(request_Q, outcome_BE[request_Q, at_Q])
    there_GC = member_GC >= 0
    slots_GC = np.where(there_GC, slots_BE[request_Q, at_Q][member_GC], 0)
    places_G, request_G, at_GC = slots_GC.sum(1), request_Q[member_GC[:, 0]], at_Q[member_GC]
    if member_GC.shape[1] == 1:
        item_GM, fit_GCM = found.item_QK[member_GC[:, 0]], found.score_QK[member_GC]
        score_GM = fit_GCM[:, 0]
    else:
        item_GCK = found.item_QK[member_GC]
        item_GCK[~there_GC] = ANY
        item_GM = _distinct(item_GCK.reshape(len(member_GC), -1))
        fit_GCM = e_BED[request_G[:, None], at_GC] @ view.vectors(item_GM).transpose(0, 2, 1)
        fit_GCM[~there_GC] = -np.inf
        weight_GC = (slots_GC / places_G[:, None]).astype(np.float32)
        score_GM = _soft_maximum(fit_GCM, weight_GC, np.float32(view.bundle.temperature))
    score_GM = np.where(item_GM == ANY, np.float32(-np.inf), score_GM)
    return Pools(request_G, places_G, at_GC, item_GM, score_GM, fit_GCM)


def _soft_maximum(
    fit_GCM: NDArray[np.float32], weight_GC: NDArray[np.float32], temperature: np.float32
) -> NDArray[np.float32]:
    """float32[G, M]: see `pooled`."""
    top_GM = fit_GCM.max(1)
    over_GCM = np.exp((fit_GCM - top_GM[:, None]) / temperature)
    mean_GM = (weight_GC[:, None] @ over_GCM)[:, 0]
    return top_GM + temperature * np.log(mean_GM)  # type: ignore[no-any-return]


def _groups(request_Q: NDArray[np.int64], outcome_Q: NDArray[np.int64]) -> NDArray[np.int64]:
    """int64[G, C]: which of the Q are in each group, -1 behind the last; groups in the order of their first members."""
    groups: dict[tuple[int, int], list[int]] = {}
    for q, key in enumerate(zip(request_Q.tolist(), outcome_Q.tolist(), strict=True)):
        groups.setdefault(key, []).append(q)
    most = max(map(len, groups.values()), default=1)
    padded = [members + [-1] * (most - len(members)) for members in groups.values()]
    return np.array(padded, np.int64).reshape(len(groups), most)


def _distinct(item_GM: NDArray[np.int64]) -> NDArray[np.int64]:
    """Each group's rows once, ascending; ANY behind the last, and at least once."""
    ascending = np.sort(item_GM, axis=1) if item_GM.size else np.full((len(item_GM), 1), ANY)
    again = np.zeros(ascending.shape, np.bool_)
    again[:, 1:] = ascending[:, 1:] == ascending[:, :-1]
    ascending[again | (ascending == ANY)] = _BEHIND
    ascending.sort(axis=1)
    ascending = ascending[:, : max(1, int((ascending != _BEHIND).sum(1).max(initial=0)))]
    return np.where(ascending == _BEHIND, ANY, ascending)
