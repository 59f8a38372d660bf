"""Histories and contexts as tokens, and their states.

Shape suffixes: B requests, L events, N items, D width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from pinrec.backbone import KVCache
from pinrec.hashing import hash_id
from pinrec.items import query_bag
from pinrec.model import PinRecModel, as_int64, previous_timestamps
from pinrec.requests import GenerationRequest

if TYPE_CHECKING:
    from pinrec.bundle import Bundle


@dataclass(frozen=True, slots=True)
class Encoded:
    """B histories, encoded.

    Attributes:
        h_BD: state at each last event.
        cache: keys and values; decoding lengthens it in place, `cache.rewind` undoes that.
        last_B: float64, timestamp of each last event.
        surface_B: int64, surface of each last event.
    """

    h_BD: Tensor
    cache: KVCache
    last_B: Tensor
    surface_B: Tensor


@torch.inference_mode()
def encode(bundle: "Bundle", requests: Sequence[GenerationRequest]) -> Encoded:
    """Prefill the histories, each followed by its request's context as a virtual last event."""
    events = _Events(bundle, requests)
    x_BLD = bundle.model.tokens(
        torch.from_numpy(events.item_BLD),
        torch.from_numpy(events.action_BL),
        torch.from_numpy(events.surface_BL),
        timestamp_BL := torch.from_numpy(events.timestamp_BL),
        previous_timestamps(timestamp_BL),
    )
    length_B = torch.from_numpy(events.length_B)
    h_BLD, cache = bundle.model.prefill(x_BLD, length_B)
    row_B, last_B = torch.arange(len(requests)), length_B - 1
    return Encoded(
        h_BLD[row_B, last_B], cache, timestamp_BL[row_B, last_B], torch.from_numpy(events.surface_BL)[row_B, last_B]
    )


class _Events:
    """Histories and contexts as right-padded arrays [B, L]."""

    def __init__(self, bundle: "Bundle", requests: Sequence[GenerationRequest]) -> None:
        self._bundle = bundle
        config, vocabulary = bundle.model.config, bundle.vocabulary
        searching = vocabulary.action_index.get("search", 0)
        engaging = min(vocabulary.engaging)
        kept = [min(len(request.history or ()), config.history) for request in requests]
        context = [(r.context_item is not None) + (r.context_query is not None) for r in requests]
        self.length_B = np.add(kept, context, dtype=np.int64)
        shape = len(requests), int(self.length_B.max())
        self.item_BLD = np.zeros((*shape, config.width), np.float32)
        self.action_BL, self.surface_BL = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        self.timestamp_BL = np.zeros(shape, np.float64)
        hash_BL, is_item_BL = np.zeros(shape, np.uint64), np.zeros(shape, np.bool_)
        queries: list[tuple[int, int, str]] = []
        for b, request in enumerate(requests):
            n, last, surface = kept[b], request.now, 0
            if request.history and n:
                rows = request.history.rows[-n:]
                hash_BL[b, :n], is_item_BL[b, :n] = rows["item_hash"], rows["is_query"] == 0
                self.action_BL[b, :n], self.surface_BL[b, :n] = rows["action"], rows["surface"]
                self.timestamp_BL[b, :n] = rows["timestamp"]
                last, surface = max(last, float(rows["timestamp"][-1])), int(rows["surface"][-1])
                if rows["is_query"].any():
                    texts = request.history.item_ids[-n:]
                    queries += [(b, int(at), texts[at]) for at in np.nonzero(rows["is_query"])[0]]
            self.timestamp_BL[b, n : n + context[b]] = last
            self.surface_BL[b, n : n + context[b]] = surface if request.surface is None else request.surface
            if request.context_query is not None:
                queries.append((b, n, request.context_query))
                self.action_BL[b, n] = searching
                n += 1
            if request.context_item is not None:
                hash_BL[b, n], is_item_BL[b, n] = hash_id(request.context_item), True
                self.action_BL[b, n] = engaging
        self.item_BLD[is_item_BL] = item_vectors(bundle, hash_BL[is_item_BL])
        if queries:
            bags = np.stack([query_bag(text, config) for _, _, text in queries])
            row, at, _ = zip(*queries, strict=True)
            self.item_BLD[row, at] = bundle.model.query_vectors(torch.from_numpy(bags)).numpy()


@torch.inference_mode()
def item_vectors(bundle: "Bundle", hash_N: np.ndarray) -> np.ndarray:
    """float32[N, D]: rows of the item table, and for items it does not hold the tower on their hash alone."""
    row_N = bundle.catalogue.rows(hash_N)
    x_ND: np.ndarray = bundle.table[np.maximum(row_N, 0)]
    unknown = np.nonzero(row_N < 0)[0]
    if len(unknown):
        x_ND[unknown] = _from_hash(bundle.model, hash_N[unknown])
    return x_ND


def _from_hash(model: PinRecModel, hash_N: np.ndarray) -> np.ndarray:
    n = len(hash_N)
    return model.item_vectors(
        as_int64(hash_N),
        torch.zeros(n, model.config.bag_size, dtype=torch.int32),
        torch.zeros(n, model.config.content_width),
        torch.zeros(n, dtype=torch.bool),
    ).numpy()
