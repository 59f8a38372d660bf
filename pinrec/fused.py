"""The forward pass as serving runs it: a model's matrices side by side, and nothing that training alone needs.

One user's step is some hundred numbers wide, so nearly all of its cost is calls into torch. `FusedModel` gives what
`PinRecModel` gives, to float tolerance, with a third of them: matrices of the same input are one, norms' weights are
multiplied into the matrix behind them, embeddings that are added to each other are one table, and angles are looked up.
On a CPU, compiled code takes few tokens, without a call into torch (`pinrec.few`).

Shapes: B rows (users), L positions, N new positions, D width, H heads, K width of a head, E embeddings a row, T tokens
in a row of their own, P positions there are angles for.
"""

import math
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F

from pinrec.backbone import ROOM, Block, KVCache, Rotary, attention
from pinrec.few import MOST, FewTokens
from pinrec.heads import PERIODS_S, LogTime, OutputHead
from pinrec.kept import rounded
from pinrec.model import PinRecModel

_LEAST: Final = 1e-20  # a vector of zeros stays one


class FusedModel:
    """Tokens, states and embeddings of a model whose weights no longer change.

    The methods are those of `PinRecModel`: same names, arguments and results. There is no dropout.
    """

    @torch.no_grad()
    def __init__(self, model: PinRecModel) -> None:
        self.config = model.config
        self.of_tokens = _Tokens(model)
        self.blocks = [_Block(block) for block in model.backbone.blocks if isinstance(block, Block)]
        self.norm_D = model.backbone.norm.weight * model.config.width**0.5
        self._angles = _Angles(model.backbone.rotary, 2 * (model.config.history + ROOM))
        self.of_head = _Head(model.output)
        self.few = FewTokens(self) if self.norm_D.device.type == "cpu" else None

    def tokens(
        self, item_BLD: Tensor, action_BL: Tensor, surface_BL: Tensor, timestamp_BL: Tensor, previous_BL: Tensor
    ) -> Tensor:
        """See `PinRecModel.tokens`."""
        if self.few is not None and timestamp_BL.numel() <= MOST:
            return self.few.tokens(item_BLD, action_BL, surface_BL, timestamp_BL, previous_BL)
        flat = [x.reshape(-1) for x in (action_BL, surface_BL, timestamp_BL, previous_BL)]
        return self.of_tokens(item_BLD.reshape(-1, self.config.width), *flat).view(item_BLD.shape)

    def prefill(self, x_BLD: Tensor, length_B: Tensor, kept: torch.dtype = torch.float32) -> tuple[Tensor, KVCache]:
        """See `Backbone.prefill`."""
        rows, length, width = x_BLD.shape
        assert length_B.shape == (rows,)
        cos_LK, sin_LK = self._angles.of_first(length)
        angles = cos_LK.repeat(rows, 1), sin_LK.repeat(rows, 1)
        keys, values, x_TD = [], [], x_BLD.reshape(-1, width)
        for layer, block in enumerate(self.blocks):
            q, k, v, gate_TD = block.split(x_TD, rows, angles)
            k, v = rounded(k, kept), rounded(v, kept)
            keys.append(k)
            values.append(v)
            x_TD = block.join(x_TD, attention(q, k, v, self.config.window_of(layer)), gate_TD)
        cache = KVCache(torch.stack(keys), torch.stack(values), length_B.to(torch.int64).clone(), length)
        return self._normed(x_TD).view(x_BLD.shape), cache

    def extend(self, x_BND: Tensor, cache: KVCache, kept: torch.dtype = torch.float32) -> Tensor:
        """See `Backbone.extend`."""
        rows, more, width = x_BND.shape
        assert len(cache.length_B) == rows
        cache.reserve(more)
        if self.few is not None and rows * more <= MOST:
            h_BND = self.few.extend(x_BND, cache, kept, self._angles.of_first(cache.longest + more))
            cache.grow(more)
            return h_BND
        places = cache.places(more)
        angles = self._angles.at(places.position_BN.reshape(-1), cache.capacity)
        x_TD = x_BND.reshape(-1, width)
        for layer, block in enumerate(self.blocks):
            q, k, v, gate_TD = block.split(x_TD, rows, angles)
            keys, values = cache.write(layer, rounded(k, kept), rounded(v, kept), places)
            seen = places.within(self.config.window_of(layer), keys.shape[2])
            x_TD = block.join(x_TD, F.scaled_dot_product_attention(q, keys, values, attn_mask=seen), gate_TD)
        cache.grow(more)
        return self._normed(x_TD).view(x_BND.shape)

    def decode(self, x_BD: Tensor, cache: KVCache) -> Tensor:
        """See `Backbone.decode`."""
        return self.extend(x_BD[:, None], cache)[:, 0]

    def head(self, h_BD: Tensor, outcome_BE: Tensor, surface_BE: Tensor, offset_s_BE: Tensor) -> Tensor:
        """See `PinRecModel.head`."""
        if self.few is not None and outcome_BE.numel() <= MOST:
            return self.few.head(h_BD, outcome_BE, surface_BE, offset_s_BE)
        return self.of_head(h_BD, outcome_BE, surface_BE, offset_s_BE)

    def _normed(self, x_TD: Tensor) -> Tensor:
        h_TD: Tensor = _unit(x_TD) * self.norm_D
        return h_TD


def _unit(x_TD: Tensor) -> Tensor:
    """Of length 1. An RMS norm is sqrt(D) times that, which the matrix behind it holds; torch's takes nine calls."""
    unit_TD: Tensor = x_TD / torch.linalg.vector_norm(x_TD, dim=-1, keepdim=True).clamp_min_(_LEAST)
    return unit_TD


class _Tokens:
    """One matrix for item and times, one table for action and surface."""

    def __init__(self, model: PinRecModel) -> None:
        scale = model.config.width**0.5
        self.matrix = torch.cat((model.item_in.weight * scale, model.time_in.weight), 1).t().contiguous()
        actions_AD = model.action.weight
        # The row of an unknown action, -1, comes first.
        unknown_D = torch.zeros_like(actions_AD[0]) if model.ranking is None else model.ranking.unknown
        actions_AD = torch.cat((unknown_D[None], actions_AD))
        bias_D = model.item_in.bias * scale + model.time_in.bias
        self.pair_QD = (actions_AD[:, None] + model.surface.weight + bias_D).flatten(0, 1)
        self.surfaces = len(model.surface.weight)
        self.period_3 = torch.tensor(PERIODS_S, dtype=torch.float64, device=bias_D.device)
        self.log = _LogTime(model.pause)
        self.no_previous_F = model.no_previous.detach()

    def __call__(self, item_TD: Tensor, action_T: Tensor, surface_T: Tensor, at_T: Tensor, before_T: Tensor) -> Tensor:
        angle_T3 = (at_T[:, None] / self.period_3).remainder_(1.0).mul_(2 * math.pi).float()
        pause_TF = self.log(at_T - before_T).where(~before_T.isnan()[:, None], self.no_previous_F)
        features = torch.cat((item_TD, angle_T3.sin(), angle_T3.cos(), pause_TF), 1)
        pair_TD = self.pair_QD.index_select(0, (action_T + 1) * self.surfaces + surface_T)
        return torch.addmm(pair_TD, features, self.matrix)


class _LogTime:
    """See `pinrec.heads.LogTime`."""

    def __init__(self, log: LogTime) -> None:
        self.max_s, self._scale = log.max_s, 1 / math.log1p(log.max_s)
        self.frequency_F, self.phase_F = log.frequency_F, log.phase_F.detach()

    def __call__(self, span_s_T: Tensor) -> Tensor:
        scaled_T1 = span_s_T.clamp(0, self.max_s).log1p_().float().mul_(self._scale)[:, None]
        return torch.cat((scaled_T1, torch.addcmul(self.phase_F, scaled_T1, self.frequency_F).sin_()), 1)


class _Angles:
    """Cosines and sines by position, for both halves of a head's width; those of the first half are negative."""

    def __init__(self, rotary: Rotary, positions: int) -> None:
        self._rotary = rotary
        self._both = self._made(positions)

    def of_first(self, positions: int) -> tuple[Tensor, Tensor]:
        """Of the first positions, [P, K] each."""
        cos_PK, sin_PK = self._both
        if positions > len(cos_PK):  # a caller's own, longer history
            cos_PK, sin_PK = self._both = self._made(positions)
        return cos_PK[:positions], sin_PK[:positions]

    def at(self, position_T: Tensor, below: int) -> tuple[Tensor, Tensor]:
        """Of these positions, all of which are below a number: [T, K] each."""
        cos_PK, sin_PK = self.of_first(below)
        return cos_PK.index_select(0, position_T), sin_PK.index_select(0, position_T)

    def _made(self, positions: int) -> tuple[Tensor, Tensor]:
        cos, sin = self._rotary.angles(torch.arange(positions, device=self._rotary.frequency_F.device))
        return torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)


class _Block:
    """See `pinrec.backbone.Block`: two matrices before the attention's output and two behind it."""

    def __init__(self, block: Block) -> None:
        self._heads, self._width = block.heads, block.open.in_features
        scale = self._width**0.5
        inner = torch.cat((block.qkv.weight, block.open.weight))
        self.first = inner * block.attention_norm.weight * scale
        self.bias = F.pad(block.open.bias, (len(inner) - len(block.open.bias), 0))
        self.out = block.out.weight.t().contiguous()
        self.both = torch.cat((block.gate.weight, block.up.weight)) * block.forward_norm.weight * scale
        self.down = block.down.weight.t().contiguous()

    def split(self, x_TD: Tensor, rows: int, angles: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Queries, keys (both turned) and values, [B, H, L, K] each, and the gate [T, D]."""
        width, heads = self._width, self._heads
        y = F.linear(_unit(x_TD), self.first, self.bias)
        cos_TK, sin_TK = angles
        qk = y[:, : 2 * width].view(-1, 2 * heads, 2, width // heads // 2)
        other, shape = qk.flip(2), (len(x_TD), 2 * heads, width // heads)
        turned = torch.addcmul(qk.reshape(shape) * cos_TK[:, None], other.view(shape), sin_TK[:, None])
        q, k = turned.view(rows, -1, 2 * heads, width // heads).transpose(1, 2).chunk(2, 1)
        v = y[:, 2 * width : 3 * width].view(rows, -1, heads, width // heads).transpose(1, 2)
        return q, k, v, F.silu(y[:, 3 * width :])

    def join(self, x_TD: Tensor, attended_BHLK: Tensor, gate_TD: Tensor) -> Tensor:
        """The rest of the block, behind the attention."""
        x_TD = torch.addmm(x_TD, attended_BHLK.transpose(1, 2).reshape(x_TD.shape) * gate_TD, self.out)
        gate, up = F.linear(_unit(x_TD), self.both).chunk(2, 1)
        return torch.addmm(x_TD, F.silu(gate) * up, self.down)


class _Head:
    """See `pinrec.heads.OutputHead`: one table for outcome and surface."""

    def __init__(self, head: OutputHead) -> None:
        self.state, self.state_bias = head.state.weight.detach(), head.state.bias.detach()
        self.pair_QF = (head.outcome.weight[:, None] + head.surface.weight).flatten(0, 1)
        self.surfaces = len(head.surface.weight)
        self.log, self.offset, self.no_offset_F = _LogTime(head.time), head.offset, head.no_offset.detach()
        self.out, self.out_bias = head.out.weight.detach(), head.out.bias.detach()

    def __call__(self, h_BD: Tensor, outcome_BE: Tensor, surface_BE: Tensor, offset_s_BE: Tensor) -> Tensor:
        assert outcome_BE.shape == surface_BE.shape == offset_s_BE.shape
        assert len(outcome_BE) == len(h_BD)
        offset_T = offset_s_BE.reshape(-1)
        pair_T = ((outcome_BE + 1) * self.surfaces + (surface_BE + 1)).reshape(-1)
        offset_TF = self.offset(self.log(offset_T)).where((offset_T >= 0)[:, None], self.no_offset_F)
        condition_TF = self.pair_QF.index_select(0, pair_T) + offset_TF
        state_BF = F.linear(h_BD, self.state, self.state_bias)
        hidden = F.gelu(state_BF[:, None] + condition_TF.view(*outcome_BE.shape, -1))
        return F.normalize(h_BD[:, None] + F.linear(hidden, self.out, self.out_bias), dim=-1)
