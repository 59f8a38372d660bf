"""The forward pass for a few tokens, compiled: its arithmetic takes microseconds, a hundred calls into torch a hundred.

See `pinrec.compiled`. Every function works for any shape; beyond some hundred tokens the matrix products of torch are
faster. Arrays are float32 and contiguous where nothing else is said; a matrix has its inputs as rows.

Shapes: as in `pinrec.fused`; also Y layers, C capacity of a cache, I inputs and O outputs of a matrix, F features.
"""

import math
from typing import Any, Final

import numba as nb
import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from pinrec.compiled import compiled, exact, sums

FLOAT32: Final = 0
BFLOAT16: Final = 1
INT8: Final = 2
"""What keys and values are rounded to, as a number."""

_LEAST: Final = np.float32(1e-20)
_LEAST_NORM: Final = np.float32(1e-12)  # torch's own, where it normalises
_LARGEST: Final = np.float32(127)
_ROOT_HALF: Final = np.float32(0.5**0.5)
_ONE: Final = np.float32(1)
_HALF: Final = np.float32(0.5)
_EXP: Final = (
    np.float32(1.3981999507e-3), np.float32(8.3334519073e-3), np.float32(4.1665795894e-2), np.float32(1.6666665459e-1),
    np.float32(0.5),
)  # fmt: skip
_ERF: Final = np.float32(-1.453152027), np.float32(1.421413741), np.float32(-0.284496736), np.float32(0.254829592)


@sums
def _add_product(x_TI, w_IO, y_TO):  # type: ignore[no-untyped-def]
    """Add x w to y. Two tokens by four inputs: an output is read and written a quarter as often, a weight read half."""
    tokens, inputs = x_TI.shape
    outputs = w_IO.shape[1]
    by_four = inputs - inputs % 4
    for t in range(0, tokens - 1, 2):
        for i in range(0, by_four, 4):
            a, b, c, d = x_TI[t, i], x_TI[t, i + 1], x_TI[t, i + 2], x_TI[t, i + 3]
            e, f, g, h = x_TI[t + 1, i], x_TI[t + 1, i + 1], x_TI[t + 1, i + 2], x_TI[t + 1, i + 3]
            for o in range(outputs):
                p, q, r, s = w_IO[i, o], w_IO[i + 1, o], w_IO[i + 2, o], w_IO[i + 3, o]
                y_TO[t, o] += a * p + b * q + c * r + d * s
                y_TO[t + 1, o] += e * p + f * q + g * r + h * s
        for i in range(by_four, inputs):
            a, e = x_TI[t, i], x_TI[t + 1, i]
            for o in range(outputs):
                y_TO[t, o] += a * w_IO[i, o]
                y_TO[t + 1, o] += e * w_IO[i, o]
    for t in range(tokens - tokens % 2, tokens):
        for i in range(0, by_four, 4):
            a, b, c, d = x_TI[t, i], x_TI[t, i + 1], x_TI[t, i + 2], x_TI[t, i + 3]
            for o in range(outputs):
                y_TO[t, o] += a * w_IO[i, o] + b * w_IO[i + 1, o] + c * w_IO[i + 2, o] + d * w_IO[i + 3, o]
        for i in range(by_four, inputs):
            a = x_TI[t, i]
            for o in range(outputs):
                y_TO[t, o] += a * w_IO[i, o]


@sums
def _unit(x_TD, unit_TD, least):  # type: ignore[no-untyped-def]
    """The vectors, of length 1; none is taken for shorter than `least`, so that zeros stay zeros. May be in place."""
    tokens, width = x_TD.shape
    for t in range(tokens):
        squares = np.float32(0)
        for d in range(width):
            squares += x_TD[t, d] * x_TD[t, d]
        scale = _ONE / max(np.float32(math.sqrt(squares)), least)
        for d in range(width):
            unit_TD[t, d] = x_TD[t, d] * scale


@sums
def _exp(x):  # type: ignore[no-untyped-def]
    """To the last bit but one, for many numbers at once: 2^n of a polynomial (Cephes, expf)."""
    x = min(max(x, np.float32(-87)), np.float32(88))
    nearest = np.int32(x * np.float32(1.44269504) + (_HALF if x >= 0 else -_HALF))
    n = np.float32(nearest)
    r = x - n * np.float32(0.693359375) + n * np.float32(2.12194440e-4)  # of ln 2 in two parts
    p = np.float32(1.9875691500e-4)
    for factor in _EXP:
        p = p * r + factor
    return (p * r * r + r + _ONE) * np.int32((nearest + np.int32(127)) << np.int32(23)).view(np.float32)


@sums
def _silu(x):  # type: ignore[no-untyped-def]
    return x / (_ONE + _exp(-x))


@sums
def _gelu(x):  # type: ignore[no-untyped-def]
    """With erf to 1.5e-7 (Abramowitz and Stegun 7.1.26)."""
    z = abs(x) * _ROOT_HALF
    t = _ONE / (_ONE + np.float32(0.3275911) * z)
    p = np.float32(1.061405429)
    for factor in _ERF:
        p = p * t + factor
    erf = _ONE - p * t * _exp(-z * z)
    return _HALF * x * (_ONE + (erf if x >= 0 else -erf))


@exact
def _to_bfloat16(x_K, bits_K):  # type: ignore[no-untyped-def]
    """Round to the nearest number of eight significant bits, ties to even; `bits_K` is the same memory as uint32."""
    for k in range(len(x_K)):
        bits = bits_K[k]
        bits_K[k] = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) & np.uint32(0xFFFF0000)


@exact
def _round(x_K, kept, one, one_bits):  # type: ignore[no-untyped-def]
    """See `pinrec.kept.rounded`. `one`: room for a number, `one_bits` the same as uint32."""
    if kept == BFLOAT16:
        _to_bfloat16(x_K, x_K.view(np.uint32))
    elif kept == INT8:
        most = _LEAST
        for k in range(len(x_K)):
            most = max(most, abs(x_K[k]))
        one[0] = most / _LARGEST
        _to_bfloat16(one, one_bits)
        for k in range(len(x_K)):
            x_K[k] = np.float32(np.rint(x_K[k] / one[0])) * one[0]


@exact
def _turn(x_K, other_K, cos_K, sin_K):  # type: ignore[no-untyped-def]
    """Rotary angles, in place; sines of the first half are negative."""
    half = len(x_K) // 2
    for k in range(half):
        other_K[k], other_K[half + k] = x_K[half + k], x_K[k]
    for k in range(len(x_K)):
        x_K[k] = x_K[k] * cos_K[k] + other_K[k] * sin_K[k]


@exact
def _float(bits):  # type: ignore[no-untyped-def]
    """The float32 of a bfloat16's bits."""
    return np.uint32(np.uint32(bits) << np.uint32(16)).view(np.float32)


_LANES: Final = 16
_SUMS: Final = 4


@intrinsic
def _add_page(_context: Any, x_I, first, inputs, page_NIO, n, y_O, at):  # type: ignore[no-untyped-def]
    """Add to y, from `at` on, the product of some numbers of x with the first rows of page n, of bfloat16 or int8.

    As LLVM is to have it: sixteen outputs at a time stay in a register while all rows go by, in four sums that need not
    wait for each other. What numba makes of the same loops reads and writes y for every fourth row.

    Of keys the rows are numbers of all positions, of values the positions: nothing is summed up across the width of the
    processor.
    """

    def codegen(context, builder, signature, args):  # type: ignore[no-untyped-def]
        x, page, y = (context.make_array(signature.args[a])(context, builder, args[a]) for a in (0, 3, 5))
        _, rows, outputs = cgutils.unpack_tuple(builder, page.shape)
        word, size = ir.IntType(32), outputs.type
        of_page = builder.gep(page.data, [builder.mul(args[4], builder.mul(rows, outputs))])
        kept = context.get_data_type(signature.args[3].dtype)
        of_x, of_y = builder.gep(x.data, [args[1]]), builder.gep(y.data, [args[6]])
        by_four = builder.sub(args[2], builder.srem(args[2], size(_SUMS)))

        def row(i, o, lanes):  # type: ignore[no-untyped-def]
            """x_i times some numbers of row i."""
            floats, nothing = ir.VectorType(ir.FloatType(), lanes), ir.Constant(ir.IntType(32), 0)
            undefined = ir.Constant(floats, ir.Undefined)
            x_i = builder.insert_element(undefined, builder.load(builder.gep(of_x, [i])), nothing)
            x_i = builder.shuffle_vector(x_i, undefined, ir.Constant(ir.VectorType(word, lanes), [0] * lanes))
            where = builder.gep(of_page, [builder.add(builder.mul(i, outputs), o)])
            many = ir.VectorType(kept, lanes).as_pointer()
            numbers = builder.load(builder.bitcast(where, many), align=kept.width // 8)
            if kept.width == 8:
                numbers = builder.sitofp(numbers, floats)
            else:
                words = ir.VectorType(word, lanes)
                shifted = builder.shl(builder.zext(numbers, words), ir.Constant(words, [16] * lanes))
                numbers = builder.bitcast(shifted, floats)
            return builder.fmul(x_i, numbers, flags=("contract",))

        def columns(begin, end, lanes):  # type: ignore[no-untyped-def]
            floats = ir.VectorType(ir.FloatType(), lanes)
            with cgutils.for_range_slice(builder, begin, end, size(lanes)) as (o, _):
                of_sum = builder.bitcast(builder.gep(of_y, [o]), floats.as_pointer())
                totals = [cgutils.alloca_once(builder, floats) for _ in range(_SUMS)]
                for number, total in enumerate(totals):
                    first = builder.load(of_sum, align=4) if number == 0 else ir.Constant(floats, [0.0] * lanes)
                    builder.store(first, total)

                def add(i, total):  # type: ignore[no-untyped-def]
                    product = row(i, o, lanes)
                    builder.store(builder.fadd(builder.load(total), product, flags=("contract",)), total)

                with cgutils.for_range_slice(builder, size(0), by_four, size(_SUMS)) as (i, _):
                    for number, total in enumerate(totals):
                        add(builder.add(i, size(number)), total)
                with cgutils.for_range_slice(builder, by_four, args[2], size(1)) as (i, _):
                    add(i, totals[0])
                made = builder.load(totals[0])
                for total in totals[1:]:
                    made = builder.fadd(made, builder.load(total))
                builder.store(made, of_sum, align=4)

        whole = builder.sub(outputs, builder.srem(outputs, size(_LANES)))
        columns(size(0), whole, _LANES)
        columns(whole, outputs, 1)
        return context.get_dummy_value()

    whole = types.intp
    return types.void(x_I, whole, whole, page_NIO, whole, y_O, whole), codegen


@exact
def _scale(score_P, scale_P):  # type: ignore[no-untyped-def]
    """Multiply the scores of a page's positions by bfloat16s."""
    for p in range(len(scale_P)):
        score_P[p] *= _float(scale_P[p])


@sums
def _softmax(score_L, most):  # type: ignore[no-untyped-def]
    """Make weights of scores, in place, and return their sum; `most` is the largest score."""
    total = np.float32(0)
    for at in range(len(score_L)):
        weight = _exp(score_L[at] - most)
        score_L[at] = weight
        total += weight
    return total


@sums
def _attend(q_K, pages, own, first, score_L, most_P, attended_K):  # type: ignore[no-untyped-def]
    """Softmax attention of one query to positions in pages, and behind them to some of its own.

    Args:
        q_K: the query over the root of its width.
        pages: keys [N, K, P] and values [N, P, K] of a layer and head, their scales [N, P] (see `extend`), blocks [M]
            of the row, positions in them.
        own: keys and values [C, K], positions.
        first: of all positions the first that it attends to.
        score_L: room for all positions, and for a page.
        most_P: room for a number of each position of a page.
    """
    key_NKP, value_NPK, key_scale_NP, value_scale_NP, block_M, paged = pages
    key_CK, value_CK, more = own
    width, size, scaled = len(q_K), value_NPK.shape[1], len(key_scale_NP) > 0
    count, whole = -(-paged // size), paged // size
    left_out, own_first = min(first // size, count), max(0, first - paged)
    most_P[:] = -np.inf
    score_L[left_out * size : count * size] = 0
    begin = left_out * size
    for m in range(left_out, count):
        score_P = score_L[begin : begin + size]
        _add_page(q_K, 0, width, key_NKP, block_M[m], score_L, begin)
        if scaled:
            _scale(score_P, key_scale_NP[block_M[m]])
        if begin < first:
            score_P[: first - begin] = -np.inf
        if m < whole:
            for p in range(size):
                most_P[p] = max(most_P[p], score_P[p])
        begin += size
    for at in range(own_first, more):
        product = np.float32(0)
        for k in range(width):
            product += q_K[k] * key_CK[at, k]
        score_L[paged + at] = product
    most = np.float32(-np.inf)
    for p in range(size):
        most = max(most, most_P[p])
    for at in range(max(whole * size, first), paged + more):
        most = max(most, score_L[at])
    total = _softmax(score_L[first : paged + more], most)
    score_L[left_out * size : first] = 0
    for k in range(width):
        attended_K[k] = 0
    for at in range(own_first, more):
        weight = score_L[paged + at]
        for k in range(width):
            attended_K[k] += weight * value_CK[at, k]
    begin = left_out * size
    for m in range(left_out, count):
        if scaled:
            _scale(score_L[begin : begin + size], value_scale_NP[block_M[m]])
        _add_page(score_L, begin, min(size, paged - begin), value_NPK, block_M[m], attended_K, 0)
        begin += size
    for k in range(width):
        attended_K[k] /= total


_tuple: Any = nb.types.UniTuple
_f4, _f8, _i8, _i1, _u2 = nb.float32, nb.float64, nb.int64, nb.int8, nb.uint16


@compiled([
    _f4[:, :, ::1](
        _f4[:, :, ::1], _tuple(of_pages[:, :, :, :, ::1], 2), _u2[:, :, :, :, ::1], _i8[:, ::1], _i8[::1],
        _f4[:, :, :, ::1], _f4[:, :, :, ::1], _tuple(_i8, 2), _i8[::1],
        _tuple(_f4[:, :, ::1], 4), _f4[:, ::1], _f4[::1], _f4[:, ::1], _f4[:, ::1], _i8, _i8[::1],
    )
    for of_pages in (_u2, _i1)
])  # fmt: skip
def extend(  # type: ignore[no-untyped-def]
    x_BND, memories, scale_2YHNP, block_BM, paged_B, key_YSCK, value_YSCK, steps, length_B, weights, bias_YO, norm_D,
    cos_PK, sin_PK, kept, window_Y,
):  # fmt: skip
    """See `FusedModel.extend`; keys and values are written behind each row's `length_B`.

    Args:
        memories: keys [Y, H, N, K, P] and values [Y, H, N, P, K] in pages: of bfloat16, as uint16, or of int8.
        scale_2YHNP: bfloat16, as uint16: what an int8 page's positions are multiplied by; without blocks where pages
            are of bfloat16.
        block_BM: int64, each row's pages; what they hold is only read.
        paged_B: int64, each row's first positions, which lie in its pages; the others are its own.
        key_YSCK, value_YSCK: S = B H or H B, as they lie.
        steps: how far the next row, and the next head, are in S.
        weights: of all layers: of queries, keys, values and gate [Y, D, 4 D]; of the attention's output [Y, D, D]; of
            gate and values of the feed-forward [Y, D, 2 F]; of its output [Y, F, D].
        bias_YO: of the first.
        cos_PK, sin_PK: see `_turn`, by position.
        kept: see `_round`.
        window_Y: int64, how many positions a token of each layer attends to, itself included; 0 = all.
    """
    rows, more, width = x_BND.shape
    layers, _, capacity, head_width = key_YSCK.shape
    heads, (row_step, head_step) = width // head_width, steps
    first, out, both, down = weights
    hidden = down.shape[1]
    tokens = rows * more
    x_TD = x_BND.copy().reshape(tokens, width)
    unit_TD, joined_TD = np.empty((tokens, width), np.float32), np.empty((tokens, width), np.float32)
    y_TO, z_TO = np.empty((tokens, 4 * width), np.float32), np.empty((tokens, 2 * hidden), np.float32)
    inner_TF = np.empty((tokens, hidden), np.float32)
    longest = 0
    for b in range(rows):
        longest = max(longest, paged_B[b])
    positions = memories[1].shape[3]
    score_L, other_K = np.empty(longest + positions + capacity, np.float32), np.empty(head_width, np.float32)
    most_P, one = np.empty(positions, np.float32), np.empty(1, np.float32)
    one_bits, scale = one.view(np.uint32), _ONE / np.float32(math.sqrt(head_width))
    for layer in range(layers):
        _unit(x_TD, unit_TD, _LEAST)
        for t in range(tokens):
            for o in range(4 * width):
                y_TO[t, o] = bias_YO[layer, o]
        _add_product(unit_TD, first[layer], y_TO)
        for t in range(tokens):
            b = t // more
            position = length_B[b] + t % more
            for h in range(2 * heads):
                _turn(y_TO[t, h * head_width : (h + 1) * head_width], other_K, cos_PK[position], sin_PK[position])
            for h in range(heads):
                s = b * row_step + h * head_step
                at = position - paged_B[b]
                key_K, value_K = key_YSCK[layer, s, at], value_YSCK[layer, s, at]
                for k in range(head_width):
                    key_K[k] = y_TO[t, width + h * head_width + k]
                    value_K[k] = y_TO[t, 2 * width + h * head_width + k]
                _round(key_K, kept, one, one_bits)
                _round(value_K, kept, one, one_bits)
        for t in range(tokens):
            b = t // more
            for h in range(heads):
                here, s = slice(h * head_width, (h + 1) * head_width), b * row_step + h * head_step
                q_K = y_TO[t, here]
                for k in range(head_width):
                    q_K[k] *= scale
                pages = (
                    memories[0][layer, h], memories[1][layer, h], scale_2YHNP[0, layer, h], scale_2YHNP[1, layer, h],
                    block_BM[b], paged_B[b],
                )  # fmt: skip
                behind = length_B[b] + t % more + 1
                own = key_YSCK[layer, s], value_YSCK[layer, s], behind - paged_B[b]
                begin = max(0, behind - window_Y[layer]) if window_Y[layer] else 0
                _attend(q_K, pages, own, begin, score_L, most_P, joined_TD[t, here])
            for d in range(width):
                joined_TD[t, d] *= _silu(y_TO[t, 3 * width + d])
        _add_product(joined_TD, out[layer], x_TD)
        _unit(x_TD, unit_TD, _LEAST)
        for t in range(tokens):
            for o in range(2 * hidden):
                z_TO[t, o] = 0
        _add_product(unit_TD, both[layer], z_TO)
        for t in range(tokens):
            for f in range(hidden):
                inner_TF[t, f] = _silu(z_TO[t, f]) * z_TO[t, hidden + f]
        _add_product(inner_TF, down[layer], x_TD)
    _unit(x_TD, unit_TD, _LEAST)
    for t in range(tokens):
        for d in range(width):
            x_TD[t, d] = unit_TD[t, d] * norm_D[d]
    return x_TD.reshape(rows, more, width)


@exact
def _log_time(span_s, max_s, frequency_F, phase_F, features):  # type: ignore[no-untyped-def]
    """See `pinrec.heads.LogTime`: writes 1 + F features."""
    scaled = np.float32(math.log1p(min(max(span_s, 0.0), max_s))) * np.float32(1 / math.log1p(max_s))
    features[0] = scaled
    for f in range(len(frequency_F)):
        features[1 + f] = np.float32(math.sin(phase_F[f] + scaled * frequency_F[f]))


@compiled(
    _f4[:, ::1](
        _f4[:, ::1], _i8[::1], _f8[::1], _f8[::1], _f4[:, ::1], _f4[:, ::1], _f8[::1], _f8, _f4[::1], _f4[::1],
        _f4[::1],
    ),
)  # fmt: skip
def tokens(item_TD, pair_T, at_T, before_T, matrix_ID, pair_QD, period_3, max_s, frequency_F, phase_F, no_previous_F):  # type: ignore[no-untyped-def]
    """See `PinRecModel.tokens`.

    Args:
        pair_T: int64, row of `pair_QD` that a token begins with.
        at_T, before_T: float64, epoch s of each event and of the one before it; NaN = there is none.
        matrix_ID: of item vector, calendar and pause.
        period_3, max_s: float64, s: of the calendar, and of the longest pause.
        no_previous_F: features of no pause.
    """
    count, width = item_TD.shape
    periods, pauses = len(period_3), 1 + len(frequency_F)
    features_TI = np.empty((count, width + 2 * periods + pauses), np.float32)
    x_TD = np.empty((count, width), np.float32)
    for t in range(count):
        x_TD[t] = pair_QD[pair_T[t]]
        features_TI[t, :width] = item_TD[t]
        for p in range(periods):
            turns = at_T[t] / period_3[p]
            angle = np.float32((turns - math.floor(turns)) * 2 * math.pi)
            features_TI[t, width + p] = np.float32(math.sin(angle))
            features_TI[t, width + periods + p] = np.float32(math.cos(angle))
        pause = features_TI[t, width + 2 * periods :]
        if math.isnan(before_T[t]):
            pause[:] = no_previous_F
        else:
            _log_time(at_T[t] - before_T[t], max_s, frequency_F, phase_F, pause)
    _add_product(features_TI, matrix_ID, x_TD)
    return x_TD


@compiled(
    _f4[:, :, ::1](
        _f4[:, ::1], _i8[:, ::1], _f4[:, ::1], _tuple(_f4[:, ::1], 4), _tuple(_f4[::1], 4),
        _f4[:, ::1], _f4[::1], _f8, _f4[::1], _f4[::1],
    ),
)  # fmt: skip
def head(h_BD, pair_BE, offset_s_BE, weights, biases, pair_QF, no_offset_F, max_s, frequency_F, phase_F):  # type: ignore[no-untyped-def]
    """See `PinRecModel.head`.

    Args:
        pair_BE: int64, row of `pair_QF`: outcome and surface.
        offset_s_BE: s; negative = none.
        weights, biases: of state, both layers of the offset, and output.
    """
    rows, embeddings = pair_BE.shape
    width = h_BD.shape[1]
    state, offset, offset_out, out = weights
    state_bias, offset_bias, offset_out_bias, out_bias = biases
    between, hidden = offset.shape[1], state.shape[1]
    state_BF = np.empty((rows, hidden), np.float32)
    for b in range(rows):
        for f in range(hidden):
            state_BF[b, f] = state_bias[f]
    _add_product(h_BD, state, state_BF)
    time_1I, between_1F = np.empty((1, 1 + len(frequency_F)), np.float32), np.empty((1, between), np.float32)
    offset_EF, inner_EF = np.empty((embeddings, hidden), np.float32), np.empty((embeddings, hidden), np.float32)
    e_BED = np.empty((rows, embeddings, width), np.float32)
    for b in range(rows):
        for e in range(embeddings):
            seconds = offset_s_BE[b, e]
            same = 0
            while offset_s_BE[b, same] != seconds:  # every outcome has the same offsets
                same += 1
            if same < e:
                for f in range(hidden):
                    offset_EF[e, f] = offset_EF[same, f]
            elif seconds >= 0:
                _log_time(np.float64(seconds), max_s, frequency_F, phase_F, time_1I[0])
                for f in range(between):
                    between_1F[0, f] = offset_bias[f]
                _add_product(time_1I, offset, between_1F)
                for f in range(between):
                    between_1F[0, f] = _gelu(between_1F[0, f])
                for f in range(hidden):
                    offset_EF[e, f] = offset_out_bias[f]
                _add_product(between_1F, offset_out, offset_EF[e : e + 1])
            else:
                for f in range(hidden):
                    offset_EF[e, f] = no_offset_F[f]
            pair = pair_BE[b, e]
            for f in range(hidden):
                inner_EF[e, f] = _gelu(state_BF[b, f] + (pair_QF[pair, f] + offset_EF[e, f]))
            for d in range(width):
                e_BED[b, e, d] = h_BD[b, d] + out_bias[d]
        _add_product(inner_EF, out, e_BED[b])
        _unit(e_BED[b], e_BED[b], _LEAST_NORM)
    return e_BED
