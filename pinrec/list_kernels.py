"""From what searches found to filled lists, compiled: in NumPy a list takes a hundred calls, each longer than its work.

See `pinrec.compiled`. Shapes: as in `pinrec.pooling`. Arrays are contiguous.
"""

import math
from typing import Any, Final

import numba as nb
import numpy as np

from pinrec.compiled import compiled, exact, sums

_f4, _f8, _i8, _u8 = nb.float32, nb.float64, nb.int64, nb.uint64
_tuple: Any = nb.types.Tuple
_NONE: Final = np.float32(-np.inf)


def plain(x: np.ndarray) -> np.ndarray:
    """The array as compiled functions take it: contiguous, and one that may be written to."""
    return np.require(x, requirements=("C", "W"))


@sums
def _product(a_D, b_D):  # type: ignore[no-untyped-def]
    product = np.float32(0)
    for d in range(len(a_D)):
        product += a_D[d] * b_D[d]
    return product


@exact
def _room_for(numbers):  # type: ignore[no-untyped-def]
    """An empty set for so many numbers: a table of a power of two, and which places of it are used."""
    capacity = 4
    while capacity < 2 * numbers + 2:
        capacity *= 2
    return np.zeros(capacity, np.uint64), np.zeros(capacity, np.bool_)


@exact
def _place(number, table, used):  # type: ignore[no-untyped-def]
    """Where in such a set a number is, or would be."""
    last = len(table) - 1
    at: Any = np.int64((number ^ (number >> np.uint64(32))) & np.uint64(last))
    while used[at] and table[at] != number:
        at = (at + 1) & last
    return at


@compiled(_i8[:, ::1](_f4[:, :, ::1], _i8[:, ::1], _i8[:, ::1], _f8))
def compressed(e_BED, outcome_BE, slots_BE, threshold):  # type: ignore[no-untyped-def]
    """See `pinrec.budget.compress`."""
    rows, embeddings, _ = e_BED.shape
    merged_BE = np.zeros((rows, embeddings), np.int64)
    for b in range(rows):
        for i in range(embeddings):
            into = i
            for j in range(i):
                if (
                    merged_BE[b, j]
                    and outcome_BE[b, j] == outcome_BE[b, i]
                    and _product(e_BED[b, i], e_BED[b, j]) > np.float32(threshold)
                ):
                    into = j
                    break
            merged_BE[b, into] += slots_BE[b, i]
    return merged_BE


@compiled(_tuple((_i8[::1], _i8[::1], _i8[::1], _i8[::1], _i8[::1]))(_i8[::1], _i8[::1], _i8[::1], _i8[:, ::1]))
def pooled(request_Q, outcome_Q, slots_Q, item_QK):  # type: ignore[no-untyped-def]
    """See `pinrec.pooling.Pools.of`: requests, outcomes, places, starts and rows."""
    queries, results = item_QK.shape
    request_G, outcome_G = np.empty(queries, np.int64), np.empty(queries, np.int64)
    places_G, start_G = np.zeros(queries, np.int64), np.zeros(queries + 1, np.int64)
    row_M = np.empty(queries * results, np.int64)
    groups = total = begin = 0
    while begin < queries:
        end = begin
        while end < queries and request_Q[end] == request_Q[begin]:
            end += 1
        for first in range(begin, end):
            again = False
            for q in range(begin, first):
                if outcome_Q[q] == outcome_Q[first]:
                    again = True
            if again:
                continue
            request_G[groups], outcome_G[groups] = request_Q[first], outcome_Q[first]
            found = total
            for q in range(first, end):
                if outcome_Q[q] == outcome_Q[first]:
                    places_G[groups] += slots_Q[q]
                    for k in range(results):
                        if item_QK[q, k] >= 0:
                            row_M[found] = item_QK[q, k]
                            found += 1
            of_group_M, distinct = row_M[total:found], 0
            if len(of_group_M):
                of_group_M.sort()
            for row in of_group_M:
                if not distinct or of_group_M[distinct - 1] != row:
                    of_group_M[distinct] = row
                    distinct += 1
            total += distinct
            groups += 1
            start_G[groups] = total
        begin = end
    return request_G[:groups], outcome_G[:groups], places_G[:groups], start_G[: groups + 1], row_M[:total]


@exact
def _scored(e_ED, at_C, weight_C, vector_MD, may_M, temperature, score_M, aimed_M):  # type: ignore[no-untyped-def]
    """Write an outcome's scores of items, and which embedding each fits best; see `pinrec.pooling.Pools.filled`."""
    members = len(at_C)
    fit_C = np.empty(members, np.float32)
    for m in range(len(vector_MD)):
        if not may_M[m]:
            score_M[m] = _NONE
            continue
        best = 0
        for c in range(members):
            fit_C[c] = _product(e_ED[at_C[c]], vector_MD[m])
            if fit_C[c] > fit_C[best]:
                best = c
        aimed_M[m], score_M[m] = at_C[best], fit_C[best]
        if members > 1:
            mean = np.float32(0)
            for c in range(members):
                mean += weight_C[c] * np.float32(math.exp((fit_C[c] - fit_C[best]) / temperature))
            score_M[m] += temperature * np.float32(math.log(mean))


@compiled(
    _tuple((_i8[::1], _i8[::1], _i8[::1], _f4[::1]))(
        _tuple((_i8[::1], _i8[::1], _i8[::1], _i8[::1], _i8[::1])), _f4[:, ::1], nb.boolean[::1],
        _f4[:, :, ::1], _i8[:, ::1], _i8[:, ::1], _f8, _i8[::1], _i8[::1],
    ),
)  # fmt: skip
def filled(pools, vector_MD, may_M, e_BED, outcome_BE, slots_BE, temperature, turn_T, start_A):  # type: ignore[no-untyped-def]
    """See `pinrec.pooling.Pools.filled`: requests, rows, embeddings and scores.

    Args:
        pools: requests, outcomes, places, starts and rows.
        turn_T, start_A: int64, of the A requests there are pools of, whose of their outcomes' turn it is.
    """
    request_G, outcome_G, places_G, start_G, row_M = pools
    embeddings = e_BED.shape[1]
    score_M, aimed_M, order_M = np.empty(len(row_M), np.float32), np.empty(len(row_M), np.int64), np.copy(row_M)
    at_C, weight_C, next_G = np.empty(embeddings, np.int64), np.empty(embeddings, np.float32), start_G[:-1].copy()
    request_N, row_N, at_N = np.empty_like(row_M), np.empty_like(row_M), np.empty_like(row_M)
    score_N = np.empty_like(score_M)
    taken = begin = 0
    for a in range(len(start_A) - 1):
        b, end = request_G[begin], begin
        while end < len(request_G) and request_G[end] == b:
            members, here = 0, slice(start_G[end], start_G[end + 1])
            for e in range(embeddings):
                if slots_BE[b, e] and outcome_BE[b, e] == outcome_G[end]:
                    at_C[members], weight_C[members] = e, slots_BE[b, e] / places_G[end]
                    members += 1
            _scored(
                e_BED[b], at_C[:members], weight_C[:members], vector_MD[here], may_M[here], np.float32(temperature),
                score_M[here], aimed_M[here],
            )  # fmt: skip
            if start_G[end] < start_G[end + 1]:
                order_M[here] = start_G[end] + np.argsort(-score_M[here], kind="mergesort")
            end += 1
        table, used = _room_for(start_A[a + 1] - start_A[a])
        for turn in turn_T[start_A[a] : start_A[a + 1]]:
            g = begin + turn
            found = False
            while not found and next_G[g] < start_G[g + 1] and score_M[order_M[next_G[g]]] != _NONE:
                m = order_M[next_G[g]]
                next_G[g] += 1
                at = _place(np.uint64(row_M[m]), table, used)
                if not used[at]:
                    table[at], used[at], found = np.uint64(row_M[m]), True, True
                    request_N[taken], row_N[taken], at_N[taken], score_N[taken] = b, row_M[m], aimed_M[m], score_M[m]
                    taken += 1
            if not found:
                break
        begin = end
    return request_N[:taken], row_N[:taken], at_N[:taken], score_N[:taken]


@compiled(nb.boolean[::1](_tuple((_i8[::1], _i8[::1], _i8[::1], _i8[::1], _i8[::1])), _u8[::1], _u8[::1], _i8[::1]))
def admitted(pools, hash_M, refused_R, start_A):  # type: ignore[no-untyped-def]
    """bool[M]: which of the pools' items their requests do not refuse.

    Args:
        hash_M: uint64, of the items.
        refused_R, start_A: uint64, hashes of what the A requests there are pools of refuse.
    """
    request_G, _, _, start_G, _ = pools
    may_M = np.empty(len(hash_M), np.bool_)
    begin = 0
    for a in range(len(start_A) - 1):
        table, used = _room_for(start_A[a + 1] - start_A[a])
        for number in refused_R[start_A[a] : start_A[a + 1]]:
            at = _place(number, table, used)
            table[at], used[at] = number, True
        b = request_G[begin]
        while begin < len(request_G) and request_G[begin] == b:
            for m in range(start_G[begin], start_G[begin + 1]):
                may_M[m] = not used[_place(hash_M[m], table, used)]
            begin += 1
    return may_M
