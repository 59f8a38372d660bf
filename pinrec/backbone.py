"""The causal transformer and its cache of keys and values.

Shapes: B rows (users), L positions, D width, H heads, K width of a head, C capacity of the cache, Y layers; in
`Backbone.attend` C candidates a row, and L is the cache's capacity.
Positions are indices in the window and enter only as rotary angles (Su et al. 2021), so attention sees their
differences and nothing else; a history that grows at its end leaves all earlier keys and values as they are.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pinrec.config import ModelConfig

ROOM = 16  # positions a full cache grows by


class KVCache:
    """Keys and values of B histories of different lengths. What lies beyond a row's length is never read."""

    def __init__(self, key_YBHCK: Tensor, value_YBHCK: Tensor, length_B: Tensor) -> None:
        assert key_YBHCK.ndim == 5
        assert key_YBHCK.shape == value_YBHCK.shape
        assert length_B.shape == (key_YBHCK.shape[1],)
        assert length_B.dtype == torch.int64
        self.key, self.value, self.length_B = key_YBHCK, value_YBHCK, length_B

    @property
    def capacity(self) -> int:
        """Positions there is memory for."""
        return self.key.shape[3]

    def reserve(self, positions: int) -> None:
        """Make room for at least `positions` positions a row."""
        if positions > self.capacity:
            pad = (0, 0, 0, positions + ROOM - self.capacity)
            self.key, self.value = F.pad(self.key, pad), F.pad(self.value, pad)

    def write(self, layer: int, key_BHK: Tensor, value_BHK: Tensor) -> tuple[Tensor, Tensor]:
        """Put one position at each row's end; returns the layer's keys and values [B, H, C, K]."""
        _, rows, heads, _, width = self.key.shape
        assert key_BHK.shape == value_BHK.shape == (rows, heads, width)
        row_B = torch.arange(rows)
        self.key[layer, row_B, :, self.length_B] = key_BHK
        self.value[layer, row_B, :, self.length_B] = value_BHK
        return self.key[layer], self.value[layer]

    def rewind(self, length_B: Tensor) -> None:
        """Forget what came after `length_B`: undoes decode steps without a copy."""
        assert length_B.shape == self.length_B.shape
        assert bool((length_B <= self.length_B).all())
        self.length_B = length_B.clone()

    def rows(self, index_R: Tensor) -> "KVCache":
        """A copy of some rows (in that order, repeats allowed), trimmed to the longest of them."""
        length_R = self.length_B[index_R]
        end = int(length_R.max()) if len(length_R) else 0
        return KVCache(self.key[:, index_R, :, :end], self.value[:, index_R, :, :end], length_R)

    @classmethod
    def cat(cls, caches: Sequence["KVCache"], room: int = 0) -> "KVCache":
        """One cache of all the rows, with `room` free positions behind the longest."""
        length_B = torch.cat([cache.length_B for cache in caches])
        capacity = int(length_B.max()) + room
        layers, _, heads, _, width = caches[0].key.shape
        key = torch.zeros(layers, len(length_B), heads, capacity, width, dtype=caches[0].key.dtype)
        value = torch.zeros_like(key)
        at = 0
        for cache in caches:
            rows, end = len(cache.length_B), min(cache.capacity, capacity)
            key[:, at : at + rows, :, :end] = cache.key[:, :, :, :end]
            value[:, at : at + rows, :, :end] = cache.value[:, :, :, :end]
            at += rows
        return cls(key, value, length_B)


class Rotary(nn.Module):
    """Turns pairs of channels by position x frequency."""

    frequency_F: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        frequency = 10_000.0 ** (-torch.arange(0, width, 2) / width)
        self.register_buffer("frequency_F", frequency, persistent=False)

    def angles(self, position: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines, [..., F] for positions [...]."""
        angle = position[..., None] * self.frequency_F
        return angle.cos(), angle.sin()


def _turn(x: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
    cos, sin = angles
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, a * sin + b * cos), -1)


def _attend_alone(
    q_BHCK: Tensor, k_BHCK: Tensor, v_BHCK: Tensor, key_BHLK: Tensor, value_BHLK: Tensor, unseen: Tensor
) -> Tensor:
    """Attention of each candidate to the positions that are not `unseen` [B, 1, C or 1, L], and to itself.

    A candidate's own key stands beside the others in one softmax; keys of all candidates under a mask would cost
    C x C more.
    """
    past_BHCL = (q_BHCK @ key_BHLK.transpose(-1, -2)).masked_fill(unseen, -torch.inf)
    own_BHC1 = (q_BHCK * k_BHCK).sum(-1, keepdim=True)
    weight = torch.softmax(torch.cat((past_BHCL, own_BHC1), -1) * q_BHCK.shape[-1] ** -0.5, -1)
    return weight[..., :-1] @ value_BHLK + weight[..., -1:] * v_BHCK


class Block(nn.Module):
    """Pre-norm attention with a gated output (Qiu et al. 2025) and a gated feed-forward (Shazeer 2020)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads, self.dropout = config.heads, config.dropout
        hidden = -(-8 * config.width // 3 // 16) * 16
        self.attention_norm, self.forward_norm = nn.RMSNorm(config.width), nn.RMSNorm(config.width)
        self.qkv = nn.Linear(config.width, 3 * config.width, bias=False)
        self.open = nn.Linear(config.width, config.width)
        self.out = nn.Linear(config.width, config.width, bias=False)
        # Two layers, not one cut in two: on a CPU the gradient of SiLU over a strided half is ten times slower.
        self.gate = nn.Linear(config.width, hidden, bias=False)
        self.up = nn.Linear(config.width, hidden, bias=False)
        self.down = nn.Linear(hidden, config.width, bias=False)
        for layer in (self.out, self.down):
            nn.init.normal_(layer.weight, std=0.02 / (2 * config.layers) ** 0.5)

    def split(self, x: Tensor, angles: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Queries, keys (both turned) and values of x [B, L, D], each [B, H, L, K], and the gate [B, L, D]."""
        b, length, _ = x.shape
        normed = self.attention_norm(x)
        q, k, v = self.qkv(normed).view(b, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        return _turn(q, angles), _turn(k, angles), v, F.silu(self.open(normed))

    def join(self, x: Tensor, attended_BHLK: Tensor, gate_BLD: Tensor) -> Tensor:
        """The rest of the block, behind the attention."""
        x = x + self._drop(self.out(attended_BHLK.transpose(1, 2).flatten(2) * gate_BLD))
        normed = self.forward_norm(x)
        return x + self._drop(self.down(F.silu(self.gate(normed)) * self.up(normed)))

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training)


class Backbone(nn.Module):
    """Tokens in, states out: the state at a position has seen the tokens up to it."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.width, self.dropout = config.width, config.dropout
        self.rotary = Rotary(config.width // config.heads)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.RMSNorm(config.width)

    def forward(self, x_BLD: Tensor) -> Tensor:
        """States h_BLD of whole windows; right-padding is harmless, as nothing looks ahead."""
        return self._encode(x_BLD)[0]

    def prefill(self, x_BLD: Tensor, length_B: Tensor) -> tuple[Tensor, KVCache]:
        """States of right-padded windows and the cache behind them, valid to each row's own length."""
        assert x_BLD.shape == (len(length_B), x_BLD.shape[1], self.width)
        assert int(length_B.max()) <= x_BLD.shape[1]
        h_BLD, keys, values = self._encode(x_BLD)
        return h_BLD, KVCache(torch.stack(keys), torch.stack(values), length_B.to(torch.int64).clone())

    def _encode(self, x: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        angles = self.rotary.angles(torch.arange(x.shape[1]))
        x = F.dropout(x, self.dropout, self.training)
        keys, values = [], []
        for block in self.blocks:
            assert isinstance(block, Block)
            q, k, v, gate = block.split(x, angles)
            keys.append(k)
            values.append(v)
            x = block.join(x, F.scaled_dot_product_attention(q, k, v, is_causal=True), gate)
        return self.norm(x), keys, values

    def decode(self, x_BD: Tensor, cache: KVCache) -> Tensor:
        """States h_BD of one more token a row; `cache` (changed in place) is one longer in every row."""
        assert x_BD.shape == (len(cache.length_B), self.width)
        cache.reserve(int(cache.length_B.max()) + 1)
        cos, sin = self.rotary.angles(cache.length_B)
        angles = cos[:, None, None], sin[:, None, None]
        seen = (torch.arange(cache.capacity) <= cache.length_B[:, None])[:, None, None]
        x = x_BD[:, None]
        for layer, block in enumerate(self.blocks):
            assert isinstance(block, Block)
            q, k, v, gate = block.split(x, angles)
            keys, values = cache.write(layer, k[:, :, 0], v[:, :, 0])
            x = block.join(x, F.scaled_dot_product_attention(q, keys, values, attn_mask=seen), gate)
        cache.length_B = cache.length_B + 1
        h_BD: Tensor = self.norm(x[:, 0])
        return h_BD

    def attend(self, x_BCD: Tensor, cache: KVCache, length_BC: Tensor | None = None) -> Tensor:
        """States h_BCD of C candidates a row, each as if it alone came next; `cache` stays as it is.

        A candidate attends to the cached history and to itself, not to other candidates (method: UniPinRec).

        Args:
            x_BCD: tokens of the candidates.
            cache: of the histories; in training its gradients flow.
            length_BC: int64, how many positions of its history each candidate sees; None = all.
        """
        assert x_BCD.shape == (len(cache.length_B), x_BCD.shape[1], self.width)
        length = cache.length_B[:, None] if length_BC is None else length_BC
        cos, sin = self.rotary.angles(length)
        angles = cos[:, None], sin[:, None]
        unseen = (torch.arange(cache.capacity) >= length[..., None])[:, None]
        x = F.dropout(x_BCD, self.dropout, self.training)
        for layer, block in enumerate(self.blocks):
            assert isinstance(block, Block)
            q, k, v, gate = block.split(x, angles)
            x = block.join(x, _attend_alone(q, k, v, cache.key[layer], cache.value[layer], unseen), gate)
        h_BCD: Tensor = self.norm(x)
        return h_BCD
