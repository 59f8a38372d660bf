"""TIGER (Rajput et al. 2023, arXiv 2305.05065): the next item's semantic ID, generated code by code.

The paper's is an encoder-decoder, whose encoder runs anew for every prefix of a history. This one is causal over
the codes of the whole history, so that one pass trains on all of its items; width and depth are the paper's. Its
user token is left out, as it says nothing of a user who was never trained on.

Shapes: B users, L items, T tokens (one to begin with, then V codes of each item), D width, H heads, K width of a
head, W beams, S codes of a level, V levels, C children of a node, X = W C.
"""

import math
from collections.abc import Iterator
from typing import Final

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from pinrec.baselines.contender import one_list
from pinrec.baselines.fitting import seeded
from pinrec.baselines.semantic_ids import SemanticIdConfig, SemanticIds, semantic_ids
from pinrec.baselines.sequences import Sequences, by_length, real_lengths
from pinrec.config import Frozen
from pinrec.measures import Rows
from pinrec.protocols import Cases, Indices, Split

CLIP: Final = 1.0  # norm of a step's gradient
BATCH: Final = 64  # users whose beams are searched at once


class TigerConfig(Frozen):
    """Sizes and rates. Depth, width, dropout and history are the paper's, which has 6 heads of 64 and a hidden 1024."""

    ids: SemanticIdConfig = SemanticIdConfig()
    width: int = Field(128, ge=1)
    layers: int = Field(4, ge=1)
    heads: int = Field(4, ge=1)
    head_width: int = Field(32, ge=1)
    hidden: int = Field(512, ge=1, description="width of the feed-forward")
    dropout: float = Field(0.1, ge=0, lt=1)
    history: int = Field(20, ge=1, description="items of a history that are read, the latest")
    beam: int = Field(20, ge=1, description="beams, unless more items are asked for")
    epochs: int = Field(30, ge=1)
    batch_items: int = Field(256, ge=1, description="items in one step, all windows of the batch together")
    learning_rate: float = Field(1e-3, gt=0)
    weight_decay: float = Field(0.05, ge=0)
    warm_up: float = Field(0.05, ge=0, lt=1, description="share of the steps in which the rate rises")


class Block(nn.Module):
    """Pre-norm attention and feed-forward, as in T5 (Raffel et al. 2020); heads need not add up to the width."""

    def __init__(self, config: TigerConfig) -> None:
        super().__init__()
        inner = config.heads * config.head_width
        self.heads, self.dropout = config.heads, config.dropout
        self.attention_norm, self.forward_norm = nn.RMSNorm(config.width), nn.RMSNorm(config.width)
        self.qkv = nn.Linear(config.width, 3 * inner, bias=False)
        self.out = nn.Linear(inner, config.width, bias=False)
        self.up = nn.Linear(config.width, config.hidden, bias=False)
        self.down = nn.Linear(config.hidden, config.width, bias=False)

    def split(self, x_BTD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, each [B, H, T, K]."""
        users, length, _ = x_BTD.shape
        qkv = self.qkv(self.attention_norm(x_BTD)).view(users, length, 3, self.heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        return q, k, v

    def join(self, x_BTD: Tensor, attended_BHTK: Tensor) -> Tensor:
        """The rest of the block, behind the attention."""
        x_BTD = x_BTD + self._drop(self.out(attended_BHTK.transpose(1, 2).flatten(2)))
        return x_BTD + self._drop(self.down(F.relu(self.up(self.forward_norm(x_BTD)))))

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training)


class Memory:
    """Keys and values of each layer, and which of them each of W queries may look at: bool[B, W, C].

    Beams share the history. What a step adds for its beams is appended behind it, and a mask of ancestors
    says whose it is, so that nothing is copied when beams are chosen anew.
    """

    def __init__(self, keys: list[Tensor], values: list[Tensor], visible_BWC: Tensor) -> None:
        self.keys, self.values, self.visible_BWC = keys, values, visible_BWC

    def branch(self, parent_BW: Tensor) -> None:
        """The next queries: each sees what its parent saw, and itself."""
        users, beams = parent_BW.shape
        seen_BWC = self.visible_BWC.gather(1, parent_BW[:, :, None].expand(-1, -1, self.visible_BWC.shape[2]))
        own = torch.eye(beams, dtype=torch.bool).expand(users, -1, -1)
        self.visible_BWC = torch.cat((seen_BWC, own), 2)

    def append(self, layer: int, key_BHWK: Tensor, value_BHWK: Tensor) -> tuple[Tensor, Tensor]:
        """Add a layer's keys and values of the new queries; returns all of them."""
        self.keys[layer] = torch.cat((self.keys[layer], key_BHWK), 2)
        self.values[layer] = torch.cat((self.values[layer], value_BHWK), 2)
        return self.keys[layer], self.values[layer]


class CodeDecoder(nn.Module):
    """Causal transformer over codes. Tokens are codes with the codes of earlier levels before them; 0 begins."""

    offset_V: Tensor

    def __init__(self, sizes: tuple[int, ...], config: TigerConfig) -> None:
        super().__init__()
        self.levels = len(sizes)
        self.register_buffer("offset_V", torch.tensor([1, *sizes[:-1]]).cumsum(0), persistent=False)
        self.token = nn.Embedding(1 + sum(sizes), config.width)
        # The window of training has an item more than a history: the one that is to be generated.
        self.position = nn.Embedding(config.history + 2, config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.RMSNorm(config.width)
        self.heads = nn.ModuleList(nn.Linear(config.width, size) for size in sizes)
        self.dropout = config.dropout
        for embedding in (self.token, self.position):
            nn.init.normal_(embedding.weight, std=config.width**-0.5)

    def tokens(self, code_BLV: Tensor) -> Tensor:
        """The beginning and all codes: int64[B, 1 + L V]."""
        return F.pad((code_BLV + self.offset_V).flatten(1), (1, 0))

    def embed(self, token: Tensor, item: Tensor) -> Tensor:
        """Input of tokens [...] that belong to the items [...] of the history, counted from 1 (0: the beginning)."""
        return F.dropout(self.token(token) + self.position(item), self.dropout, self.training)

    def forward(self, token_BT: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """States [B, T, D], and each layer's keys and values; right-padding is harmless, as nothing looks ahead."""
        item_T = (torch.arange(token_BT.shape[1]) + self.levels - 1) // self.levels
        x_BTD = self.embed(token_BT, item_T)
        keys, values = [], []
        for block in self.blocks:
            assert isinstance(block, Block)
            q, k, v = block.split(x_BTD)
            keys.append(k)
            values.append(v)
            x_BTD = block.join(x_BTD, F.scaled_dot_product_attention(q, k, v, is_causal=True))
        return self.norm(x_BTD), keys, values

    def decode(self, token_BW: Tensor, item_B: Tensor, memory: Memory) -> Tensor:
        """States [B, W, D] of one more token a beam, with `memory` branched for them."""
        x_BWD = self.embed(token_BW, item_B[:, None])
        for layer, block in enumerate(self.blocks):
            assert isinstance(block, Block)
            q, k, v = block.split(x_BWD)
            key, value = memory.append(layer, k, v)
            attended = F.scaled_dot_product_attention(q, key, value, attn_mask=memory.visible_BWC[:, None])
            x_BWD = block.join(x_BWD, attended)
        states_BWD: Tensor = self.norm(x_BWD)
        return states_BWD

    def loss(self, code_BLV: Tensor, real_BL: Tensor) -> Tensor:
        """Mean over the real items of -log P(item | items before) = the sum of the cross entropies of its codes."""
        h_BTD, _, _ = self(self.tokens(code_BLV)[:, :-1])
        h_MVD = h_BTD.unflatten(1, (-1, self.levels))[real_BL]
        code_MV = code_BLV[real_BL]
        losses = [F.cross_entropy(head(h_MVD[:, v]), code_MV[:, v]) for v, head in enumerate(self.heads)]
        return torch.stack(losses).sum()


class Beams:
    """Beam search that only ever holds prefixes of items that may come out."""

    def __init__(self, model: CodeDecoder, ids: SemanticIds) -> None:
        self.model = model
        self.code_NV = torch.as_tensor(ids.code_NV)
        self.row_N = torch.as_tensor(ids.row)
        self.node_VN = torch.as_tensor(np.stack([level.node_N for level in ids.trie]))
        self.items_below = [torch.bincount(node_N) for node_N in self.node_VN]
        self.first = [torch.as_tensor(level.first_P) for level in ids.trie]
        self.code = [torch.as_tensor(level.code_PC) for level in ids.trie]

    @torch.inference_mode()
    def search(self, item_BL: Tensor, length_B: Tensor, seen: list[Indices], beams: int) -> tuple[Tensor, Tensor]:
        """The items whose beams end best, int64[B, W], best first, and their log P, float32[B, W].

        -1 and minus infinity where a user has fewer items left.

        Args:
            item_BL: catalogue rows, right-padded with anything valid.
            length_B: items of each history; may be 0.
            seen: rows that must not come out. A prefix with no other item below it is never held, so that `beams`
                unseen items are found wherever there are as many.
        """
        self.model.eval()
        users, levels = len(length_B), self.model.levels
        h_BTD, keys, values = self.model(self.model.tokens(self.code_NV[item_BL]))
        last_B = length_B * levels
        h_BWD = h_BTD[torch.arange(users), last_B][:, None]
        memory = Memory(keys, values, (torch.arange(h_BTD.shape[1]) <= last_B[:, None])[:, None])
        open_to = self._open(seen)
        node_BW, score_BW = torch.zeros(users, 1, dtype=torch.int64), torch.zeros(users, 1)
        for level, head in enumerate(self.model.heads):
            code_BWC = self.code[level][node_BW]
            children = code_BWC.shape[2]
            below_BWC = self.first[level][node_BW][:, :, None] + torch.arange(children)
            below_BX, code_BX = below_BWC.flatten(1), code_BWC.flatten(1)
            allowed_BX = (code_BX >= 0) & open_to[level].gather(1, below_BX.clamp(max=open_to[level].shape[1] - 1))
            log_p_BWC = head(h_BWD).log_softmax(2).gather(2, code_BWC.clamp(min=0))
            score_BX = (score_BW[:, :, None] + log_p_BWC).flatten(1).masked_fill(~allowed_BX, -torch.inf)
            score_BW, best_BW = score_BX.topk(min(beams, score_BX.shape[1]))
            # What is not allowed ends a beam: it is kept at any node, with a score that stays minus infinity.
            node_BW = below_BX.gather(1, best_BW).masked_fill(score_BW.isneginf(), 0)
            if level + 1 < levels:
                memory.branch(best_BW // children)
                token_BW = code_BX.gather(1, best_BW).clamp(min=0) + self.model.offset_V[level]
                h_BWD = self.model.decode(token_BW, length_B + 1, memory)
        return self.row_N[node_BW].masked_fill(score_BW.isneginf(), -1), score_BW

    def _open(self, seen: list[Indices]) -> list[Tensor]:
        """For each level, bool[B, nodes]: whether the user has unseen items below the node."""
        user = torch.as_tensor(np.repeat(np.arange(len(seen)), [len(rows) for rows in seen]))
        node_VM = self.node_VN[:, torch.as_tensor(np.concatenate(seen))]
        opened = []
        for node_M, items in zip(node_VM, self.items_below, strict=True):
            left = items.repeat(len(seen), 1)
            left.index_put_((user, node_M), torch.tensor(-1), accumulate=True)
            opened.append(left > 0)
        return opened


class Tiger:
    """The contender: semantic IDs of the catalogue, a decoder of codes, and beams over the trie of valid IDs."""

    def __init__(self, split: Split, config: TigerConfig, seed: int) -> None:
        self.config, self.seed, self.log = config, seed, split.log
        self.epochs, self.epoch = config.epochs, 0
        self.training = Sequences.of_training(split).engaged(split.log)
        histories = np.split(split.log.item[self.training.row], self.training.start[1:-1])
        self._made: tuple[Cases, Rows] | None = None
        self._make(semantic_ids(split.log.catalogue, histories, config.ids, seed))

    def _make(self, ids: SemanticIds) -> None:
        self.ids = ids
        with seeded(self.seed):
            self.model = CodeDecoder(ids.sizes, self.config)
        self.beams = Beams(self.model, ids)
        self.optimiser = torch.optim.AdamW(
            self.model.parameters(),
            lr=self.config.learning_rate,
            betas=(0.9, 0.98),
            weight_decay=self.config.weight_decay,
            fused=True,
        )

    def fit_epoch(self) -> float:
        """One pass over all training histories; returns the mean of -log P(item) over the steps."""
        rng = np.random.default_rng((self.seed, self.epoch))
        batches = list(_batches(self.training, self.config, rng))
        losses = []
        self.model.train()
        with seeded(int(rng.integers(2**63))):
            for step, rows_BL in enumerate(batches):
                rate = self.config.learning_rate * self._schedule((self.epoch + step / len(batches)) / self.epochs)
                self.optimiser.param_groups[0]["lr"] = rate
                loss = self.model.loss(self.beams.code_NV[self.log.item[rows_BL]], torch.as_tensor(rows_BL >= 0))
                self.optimiser.zero_grad()
                torch.autograd.backward(loss)
                nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
                self.optimiser.step()
                losses.append(float(loss.detach()))
        self.epoch, self._made = self.epoch + 1, None
        return float(np.mean(losses))

    def _schedule(self, done: float) -> float:
        """Share of the learning rate: a straight rise, then half a cosine."""
        if done < self.config.warm_up:
            return max(0.01, done / self.config.warm_up)
        return 0.5 * (1 + math.cos(math.pi * (done - self.config.warm_up) / (1 - self.config.warm_up)))

    def state(self) -> dict[str, Tensor]:
        """Weights, optimiser, semantic IDs and epochs done."""
        state = {"epoch": torch.tensor(self.epoch), "codes": torch.as_tensor(self.ids.code_NV.copy())}
        state |= {f"model.{name}": value.clone() for name, value in self.model.state_dict().items()}
        for index, moments in self.optimiser.state_dict()["state"].items():
            state |= {f"optimiser.{index}.{name}": value.clone() for name, value in moments.items()}
        return state

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Go on from `state`. The IDs are taken from it too: another machine may round a borderline item elsewhere."""
        self._make(SemanticIds(state["codes"].cpu().numpy().copy()))
        self.epoch, self._made = int(state["epoch"]), None
        self.model.load_state_dict({n.removeprefix("model."): v for n, v in state.items() if n.startswith("model.")})
        optimiser = self.optimiser.state_dict()
        moments: dict[int, dict[str, Tensor]] = {}
        for name, value in state.items():
            if name.startswith("optimiser."):
                _, index, moment = name.split(".")
                moments.setdefault(int(index), {})[moment] = value.clone()
        self.optimiser.load_state_dict(optimiser | {"state": moments})

    def ranked(self, cases: Cases, k: int) -> Rows:
        """The k best beams of each user, int64[B, k], best first."""
        # `generated` is asked for the list that was just made, and beams are dear.
        if self._made is None or self._made[0] is not cases or self._made[1].shape[1] != k:
            self._made = cases, self._ranked(cases, k)
        return self._made[1].copy()

    def _ranked(self, cases: Cases, k: int) -> Rows:
        lists = np.full((len(cases), k), -1, np.int64)
        histories = Sequences.of_cases(cases).engaged(self.log)
        for group in by_length(histories.length):
            for at in range(0, len(group), BATCH):
                users = group[at : at + BATCH]
                rows_BL = histories.last(users, self.config.history)
                found, _ = self.beams.search(
                    torch.as_tensor(self.log.item[rows_BL]),
                    torch.as_tensor(real_lengths(rows_BL)),
                    [cases.seen[user] for user in users],
                    max(k, self.config.beam),
                )
                lists[users, : found.shape[1]] = found[:, :k].cpu().numpy()
        return lists

    def generated(self, cases: Cases, embeddings: int, k: int) -> Rows:
        """The list of embeddings x k beams, cut into embeddings."""
        return one_list(self, cases, embeddings, k)


def _batches(sequences: Sequences, config: TigerConfig, rng: np.random.Generator) -> Iterator[Indices]:
    """An epoch's batches in random order: rows of the log, int64[B, L], -1 is padding, only at the end.

    Histories longer than a window are cut at a random phase; windows of like length share a batch, to save padding.
    """
    size = config.history + 1
    phase_S = np.where(sequences.length > size, rng.integers(size, size=len(sequences)), 0)
    windows_S = -(-(sequences.length + phase_S) // size)
    which = np.repeat(np.arange(len(sequences)), windows_S)
    end = size * (np.arange(len(which)) - np.repeat(np.cumsum(windows_S) - windows_S, windows_S) + 1) - phase_S[which]
    begin, end = np.maximum(end - size, 0), np.minimum(end, sequences.length[which])
    order = rng.permutation(len(which))
    order = order[np.argsort((end - begin)[order], kind="stable")]
    batches, at = [], 0
    while at < len(order):
        # Sorted, so that the last is the longest: the batch ends where rows x longest would be too many.
        padded = (end - begin)[order[at:]] * np.arange(1, len(order) - at + 1)
        batches.append(order[at : at + max(1, int(np.searchsorted(padded, config.batch_items, side="right")))])
        at += len(batches[-1])
    for batch in rng.permutation(len(batches)):
        rows = batches[batch]
        yield sequences.padded(which[rows], begin[rows], (end - begin)[rows])
