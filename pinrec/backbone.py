"""The causal transformer and its cache of keys and values.

Shapes: B rows (users), L positions, D width, H heads, K width of a head, C capacity of the cache, Y layers; in
`Backbone.attend` C candidates a row, and L is the cache's capacity.
Positions are indices in the window and enter only as rotary angles (Su et al. 2021), so attention sees their
differences and nothing else; a history that grows at its end leaves all earlier keys and values as they are.
The last layer attends to the whole history, the others to its end (Beltagy et al. 2020): what a new event costs hardly
grows with the history, and no event is out of reach.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pinrec.config import ModelConfig
from pinrec.kept import rounded

ROOM = 16  # positions a full cache grows by


class Places(NamedTuple):
    """Where N new positions of each row go, and what they may attend to; the same in every layer.

    Attributes:
        position_BN: int64, their positions.
        lone: the first of them where there is only one row: then they lie side by side, and nothing lies behind.
        seen: bool[B or 1, 1, N, keys] which of the keys that `KVCache.write` returns; None = all of them.
    """

    position_BN: Tensor
    lone: int | None
    seen: Tensor | None

    def within(self, window: int, keys: int) -> Tensor | None:
        """`seen` where a position looks back at `window` ones only, itself among them; 0 = no limit.

        Args:
            keys: how many there are.
        """
        if not window or (self.lone is not None and keys <= window):
            return self.seen
        device = self.position_BN.device
        near = (torch.arange(keys, device=device) > self.position_BN[..., None] - window)[:, None]
        return near if self.seen is None else near & self.seen


class KVCache:
    """Keys and values of B histories of different lengths. What lies beyond a row's length is never read.

    Args:
        longest: no row is longer; None: as `length_B` says. Known here, a GPU need not be waited for to make room.
    """

    def __init__(self, key_YBHCK: Tensor, value_YBHCK: Tensor, length_B: Tensor, longest: int | None = None) -> None:
        assert key_YBHCK.ndim == 5
        assert key_YBHCK.shape == value_YBHCK.shape
        assert length_B.shape == (key_YBHCK.shape[1],)
        assert length_B.dtype == torch.int64
        self.key, self.value, self.length_B = key_YBHCK, value_YBHCK, length_B
        self.longest = int(length_B.max()) if longest is None else longest

    @property
    def capacity(self) -> int:
        """Positions there is memory for."""
        return self.key.shape[3]

    def reserve(self, more: int) -> None:
        """Make room for at least `more` positions behind each row."""
        if (positions := self.longest + more) > self.capacity:
            pad = (0, 0, 0, positions + ROOM - self.capacity)
            self.key, self.value = F.pad(self.key, pad), F.pad(self.value, pad)

    def places(self, more: int) -> Places:
        """Where the next `more` positions of each row go; there must be room for them."""
        device = self.key.device
        position_BN = self.length_B[:, None] + torch.arange(more, device=device)
        alone = len(self.length_B) == 1 and not self.length_B.is_cuda  # a GPU would be waited for
        lone = int(self.length_B) if alone else None
        if lone is not None and more == 1:
            return Places(position_BN, lone, None)
        keys = self.capacity if lone is None else lone + more
        return Places(position_BN, lone, (torch.arange(keys, device=device) <= position_BN[..., None])[:, None])

    def write(self, layer: int, key_BHNK: Tensor, value_BHNK: Tensor, places: Places) -> tuple[Tensor, Tensor]:
        """Put N positions in their places; returns the layer's keys and values [B, H, up to C, K]."""
        _, rows, heads, _, width = self.key.shape
        more = key_BHNK.shape[2]
        assert key_BHNK.shape == value_BHNK.shape == (rows, heads, more, width)
        key_BHCK, value_BHCK = self.key[layer], self.value[layer]
        if places.lone is not None:
            end = places.lone + more
            key_BHCK[:, :, places.lone : end] = key_BHNK
            value_BHCK[:, :, places.lone : end] = value_BHNK
            return key_BHCK[:, :, :end], value_BHCK[:, :, :end]
        row_B1 = torch.arange(rows, device=self.key.device)[:, None]
        key_BHCK[row_B1, :, places.position_BN] = key_BHNK.transpose(1, 2).to(self.key.dtype)
        value_BHCK[row_B1, :, places.position_BN] = value_BHNK.transpose(1, 2).to(self.value.dtype)
        return key_BHCK, value_BHCK

    def new(self, number: int, row_T: Tensor, at_T: Tensor) -> Tensor:
        """Keys (0) or values (1) of some positions of some rows, [Y, H, T, K]."""
        # Indices with a slice between them go first.
        return (self.key, self.value)[number][:, row_T, :, at_T].permute(1, 2, 0, 3)

    def grow(self, more: int) -> None:
        """Take `more` positions that were written behind each row as its own."""
        self.length_B = self.length_B + more
        self.longest += more

    def rewind(self, length_B: Tensor) -> None:
        """Forget what came after `length_B`: undoes decode steps without a copy."""
        assert length_B.shape == self.length_B.shape
        assert bool((length_B <= self.length_B).all())
        self.length_B = length_B.clone()
        self.longest = int(length_B.max())


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


def attention(q_BHLK: Tensor, k_BHLK: Tensor, v_BHLK: Tensor, window: int, left_out: float = 0.0) -> Tensor:
    """Softmax attention of each position of whole windows to itself and those before it.

    Args:
        window: to so many of them, the latest; 0 = to all. Taken by so many queries at a time, which see less than
            twice as many keys.
        left_out: share of the weights that training leaves out.
    """
    length = q_BHLK.shape[2]
    if not window or length <= window:
        return F.scaled_dot_product_attention(q_BHLK, k_BHLK, v_BHLK, dropout_p=left_out, is_causal=True)
    position_L, parts = torch.arange(length, device=q_BHLK.device), []
    for at in range(0, length, window):
        queries, keys = slice(at, at + window), slice(max(0, at + 1 - window), at + window)
        back_QL = position_L[queries, None] - position_L[keys]
        seen_QL = (back_QL >= 0) & (back_QL < window)
        some = q_BHLK[:, :, queries], k_BHLK[:, :, keys], v_BHLK[:, :, keys]
        parts.append(F.scaled_dot_product_attention(*some, attn_mask=seen_QL, dropout_p=left_out))
    return torch.cat(parts, 2)


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
        self.heads, self.dropout, self.inner_dropout = config.heads, config.dropout, config.inner_dropout
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
        hidden = F.dropout(F.silu(self.gate(normed)) * self.up(normed), self.inner_dropout, self.training)
        return x + self._drop(self.down(hidden))

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training)


class Backbone(nn.Module):
    """Tokens in, states out: the state at a position has seen the tokens up to it."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.width, self.dropout = config.width, config.dropout
        self.window_Y = [config.window_of(layer) for layer in range(config.layers)]
        self.rotary = Rotary(config.width // config.heads)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.RMSNorm(config.width)

    def forward(self, x_BLD: Tensor) -> Tensor:
        """States h_BLD of whole windows; right-padding is harmless, as nothing looks ahead."""
        return self._encode(x_BLD)[0]

    def prefill(self, x_BLD: Tensor, length_B: Tensor, kept: torch.dtype = torch.float32) -> tuple[Tensor, KVCache]:
        """States of right-padded windows and the cache behind them, valid to each row's own length.

        Args:
            kept: keys and values are rounded to it before anything attends to them, so that who keeps them in this type
                and goes on from them later gets the same states.
        """
        assert x_BLD.shape == (len(length_B), x_BLD.shape[1], self.width)
        # A GPU would be waited for, which a captured graph cannot do.
        assert length_B.is_cuda or int(length_B.max()) <= x_BLD.shape[1]
        h_BLD, keys, values = self._encode(x_BLD, kept)
        cache = KVCache(torch.stack(keys), torch.stack(values), length_B.to(torch.int64).clone(), x_BLD.shape[1])
        return h_BLD, cache

    def _encode(self, x: Tensor, kept: torch.dtype = torch.float32) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        angles = self.rotary.angles(torch.arange(x.shape[1], device=x.device))
        x = F.dropout(x, self.dropout, self.training)
        keys, values = [], []
        for block, window in zip(self.blocks, self.window_Y, strict=True):
            assert isinstance(block, Block)
            q, k, v, gate = block.split(x, angles)
            k, v = rounded(k, kept), rounded(v, kept)
            keys.append(k)
            values.append(v)
            left_out = block.inner_dropout if self.training else 0.0
            x = block.join(x, attention(q, k, v, window, left_out), gate)
        return self.norm(x), keys, values

    def extend(self, x_BND: Tensor, cache: KVCache, kept: torch.dtype = torch.float32) -> Tensor:
        """States h_BND of N more tokens behind each row; `cache` (changed in place) is N longer in every row.

        Rows with fewer new tokens are padded on the right, and the cache is rewound to their own ends afterwards.

        Args:
            kept: see `prefill`.
        """
        more = x_BND.shape[1]
        assert x_BND.shape == (len(cache.length_B), more, self.width)
        cache.reserve(more)
        places = cache.places(more)
        cos, sin = self.rotary.angles(places.position_BN)
        angles = cos[:, None], sin[:, None]
        x = x_BND
        for layer, block in enumerate(self.blocks):
            assert isinstance(block, Block)
            q, k, v, gate = block.split(x, angles)
            keys, values = cache.write(layer, rounded(k, kept), rounded(v, kept), places)
            seen = places.within(self.window_Y[layer], keys.shape[2])
            x = block.join(x, F.scaled_dot_product_attention(q, keys, values, attn_mask=seen), gate)
        cache.grow(more)
        h_BND: Tensor = self.norm(x)
        return h_BND

    def decode(self, x_BD: Tensor, cache: KVCache) -> Tensor:
        """`extend` by one token a row: states h_BD."""
        return self.extend(x_BD[:, None], cache)[:, 0]

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
        position_L, length_BC1 = torch.arange(cache.capacity, device=x_BCD.device), length[..., None]
        behind = (position_L >= length_BC1)[:, None]
        x = F.dropout(x_BCD, self.dropout, self.training)
        for layer, block in enumerate(self.blocks):
            assert isinstance(block, Block)
            q, k, v, gate = block.split(x, angles)
            window = self.window_Y[layer]
            unseen = behind | (position_L <= length_BC1 - window)[:, None] if window else behind
            x = block.join(x, _attend_alone(q, k, v, cache.key[layer], cache.value[layer], unseen), gate)
        h_BCD: Tensor = self.norm(x)
        return h_BCD
