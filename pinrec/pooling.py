"""What the searches for one batch found, pooled by outcome, and the lists that are filled from it.

Shape suffixes: B requests, E embeddings of a request in generation order, Q embeddings that are searched, K results of
a search, G groups (a request and one of its outcomes), M items of all groups, A requests that there are groups of, N
items that are taken, D width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from pinrec.delta import View

Rows = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Found:
    """Results of one search: `item_QK` for the embeddings `at_Q` of the requests `request_Q`.

    Requests are ascending, and so are the embeddings of each. Rows are ANY behind the last.
    """

    request_Q: Rows
    at_Q: Rows
    item_QK: Rows


@dataclass(frozen=True, slots=True)
class Taken:
    """Items for lists, a request's in the order of its list; requests are ascending.

    Attributes:
        request_N, row_N: int64.
        at_N: int64, which of its outcome's embeddings each item fits best.
        score_N: float32, how well it fits all of them together.
    """

    request_N: Rows
    row_N: Rows
    at_N: Rows
    score_N: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Pools:
    """The items found for each outcome of each request, each once.

    Attributes:
        request_G: int64, ascending; groups of a request are in the order of their first embeddings.
        outcome_G, places_G: int64, each outcome and its places.
        start_G: int64[G + 1], where each group begins in `row_M`, and where the last ends.
        row_M: int64, ascending in each group.
    """

    request_G: Rows
    outcome_G: Rows
    places_G: Rows
    start_G: Rows
    row_M: Rows

    @classmethod
    def of(cls, outcome_BE: Rows, slots_BE: Rows, found: Found) -> "Pools":
        """Pool what was found for embeddings of the same outcome."""
        from pinrec import list_kernels  # noqa: PLC0415 - compiled where lists are made

        request_Q, at_Q = found.request_Q, found.at_Q
        outcome_Q, slots_Q = outcome_BE[request_Q, at_Q], slots_BE[request_Q, at_Q]
        return cls(
            *list_kernels.pooled(list_kernels.plain(request_Q), outcome_Q, slots_Q, list_kernels.plain(found.item_QK))
        )

    @property
    def requests(self) -> list[int]:
        """The requests, ascending."""
        return list(dict.fromkeys(self.request_G.tolist()))

    def of_request(self, request: int) -> slice:
        """Where its items stand."""
        lo, hi = np.searchsorted(self.request_G, (request, request + 1))
        return slice(int(self.start_G[lo]), int(self.start_G[hi]))

    def admitted(self, view: View, refused: Sequence[NDArray[np.uint64]]) -> NDArray[np.bool_]:
        """bool[M]: all but the items whose hashes a request refuses.

        Args:
            refused: of each of the `requests`.
        """
        from pinrec import list_kernels  # noqa: PLC0415

        return list_kernels.admitted(  # type: ignore[no-any-return]
            self._all, view.hashes(self.row_M), np.concatenate(refused), _starts([len(mine) for mine in refused])
        )

    def filled(
        self,
        view: View,
        may_M: NDArray[np.bool_],
        e_BED: NDArray[np.float32],
        outcome_BE: Rows,
        slots_BE: Rows,
        depth: int,
    ) -> Taken:
        """Outcomes take turns by their places, and each takes the best that is left for it.

        Taking turns matters where outcomes want the same items: by score alone, one of them would take all of the best
        and leave the other what nobody wants. Once every place is filled, each outcome takes `depth` - 1 further items
        for each of its places. A list ends where an outcome has nothing left.

        The embeddings of an outcome differ in step and time offset: each predicts what comes then. With the
        temperature t and weights w_e by their places, an item's score is t log sum_e w_e exp(<e, x> / t): a soft
        maximum of the inner products, and the inner product of a lone embedding. Of equal scores the lower row wins.

        Args:
            may_M: which items may be taken.
        """
        from pinrec import list_kernels  # noqa: PLC0415

        places: dict[int, list[int]] = {}
        for request, mine in zip(self.request_G.tolist(), self.places_G.tolist(), strict=True):
            places.setdefault(request, []).append(mine)
        turns_A = [_turns(tuple(of_request), depth) for of_request in places.values()]
        arrays = (list_kernels.plain(x) for x in (e_BED, outcome_BE, slots_BE))
        whose = np.concatenate(turns_A), _starts([len(turns_T) for turns_T in turns_A])
        vector_MD = list_kernels.plain(view.vectors(self.row_M))
        return Taken(*list_kernels.filled(self._all, vector_MD, may_M, *arrays, view.bundle.temperature, *whose))

    @property
    def _all(self) -> tuple[Rows, Rows, Rows, Rows, Rows]:
        return self.request_G, self.outcome_G, self.places_G, self.start_G, self.row_M


@lru_cache(maxsize=1_024)
def turns(places: tuple[int, ...]) -> tuple[int, ...]:
    """Which of the outcomes is next, for all of their places: any head of the list holds each one's share, within one.

    The j-th of an outcome's n stands at (j + 1/2) / n of the list.
    """
    at = [((j + 0.5) / n, -n, aim) for aim, n in enumerate(places) for j in range(n)]
    return tuple(aim for _, _, aim in sorted(at))


@lru_cache(maxsize=1_024)
def _turns(places: tuple[int, ...], depth: int) -> Rows:
    """int64, not to be written to: the turns for all places, and for `depth` - 1 more items for each."""
    made = np.array((*turns(places), *turns(tuple((depth - 1) * n for n in places))), np.int64)
    made.setflags(write=False)
    return made


def _starts(lengths: Sequence[int]) -> Rows:
    return np.concatenate((np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)))
