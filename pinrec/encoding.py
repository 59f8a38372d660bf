"""Histories and contexts as tokens, and their states.

Shape suffixes: B requests, L events, N items, D width.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

import numpy as np
import torch
from torch import Tensor

from pinrec.backbone import KVCache
from pinrec.hashing import hash_id
from pinrec.items import feature_bag, query_bag
from pinrec.model import PinRecModel, as_int64
from pinrec.requests import GenerationRequest

if TYPE_CHECKING:
    from pinrec.bundle import Bundle

_FEW: Final = 8


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


Part = tuple[list[int], Encoded]
"""Some of a batch's requests, by their numbers, and their histories."""


class Encoder(Protocol):
    """Encodes a batch: each request in one of the parts, those of similar cost together."""

    def __call__(self, bundle: "Bundle", requests: Sequence[GenerationRequest], /) -> list[Part]:
        """The parts; no request is in none or in two."""


@torch.inference_mode()
def encode(bundle: "Bundle", requests: Sequence[GenerationRequest], kept: torch.dtype = torch.float32) -> Encoded:
    """Prefill the histories, each followed by its request's context as virtual last events.

    Args:
        kept: see `Backbone.prefill`.
    """
    events = NewEvents(bundle, requests, [0] * len(requests))
    h_BLD, cache = bundle.fused.prefill(events.tokens(), events.count_B, kept)
    return Encoded(h_BLD[torch.arange(len(requests)), events.count_B - 1], cache, events.last_B, events.last_surface_B)


def from_scratch(
    bundle: "Bundle", requests: Sequence[GenerationRequest], kept: torch.dtype = torch.float32
) -> list[Part]:
    """The `Encoder` that keeps nothing; `kept`: see `Backbone.prefill`."""
    lengths = [window_length(bundle, request) + request.context for request in requests]
    parts = by_length(range(len(requests)), lengths)
    return [(part, encode(bundle, [requests[b] for b in part], kept)) for part in parts]


def window_length(bundle: "Bundle", request: GenerationRequest) -> int:
    """Events of the request's history that are encoded."""
    return min(len(request.history or ()), bundle.model.config.history)


def by_length(requests: Iterable[int], lengths: Sequence[int]) -> list[list[int]]:
    """Requests in parts of similar length: whoever is padded to the longest of a part at most doubles in length.

    Parts of few requests would cost more than the padding that they save.
    """
    parts: list[list[int]] = []
    for b in sorted(requests, key=lengths.__getitem__):
        if parts and (len(parts[-1]) < _FEW or lengths[b] <= 2 * lengths[parts[-1][0]]):
            parts[-1].append(b)
        else:
            parts.append([b])
    return parts


class NewEvents:
    """What comes behind the events of each history that are encoded already: later ones, and the request's context.

    Right-padded arrays [B, L].

    Attributes:
        count_B: int64, how many come.
        history_B: int64, how many of them are events of the history.
        last_B, last_surface_B: timestamp (float64, epoch s) and surface of each row's last event, new or not.
    """

    def __init__(self, bundle: "Bundle", requests: Sequence[GenerationRequest], since: Sequence[int]) -> None:
        self._bundle = bundle
        config, vocabulary = bundle.model.config, bundle.vocabulary
        searching = vocabulary.action_index.get("search", 0)
        engaging = min(vocabulary.engaging)
        windows = [window_length(bundle, request) for request in requests]
        news = [window - known for window, known in zip(windows, since, strict=True)]
        counts = [new + request.context for new, request in zip(news, requests, strict=True)]
        self.history_B, self.count_B = torch.tensor(news), torch.tensor(counts)
        shape = len(requests), max(counts)
        self._item_BLD = np.zeros((*shape, config.width), np.float32)
        self._action_BL, self._surface_BL = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        self._timestamp_BL = np.zeros(shape, np.float64)
        before_B, last_B, last_surface_B = np.full(len(requests), np.nan), np.zeros(len(requests)), [0] * len(requests)
        hash_BL, is_item_BL = np.zeros(shape, np.uint64), np.zeros(shape, np.bool_)
        queries: list[tuple[int, int, str]] = []
        for b, request in enumerate(requests):
            n, last, surface = news[b], request.now, 0
            if request.history and windows[b]:
                window = request.history.rows[-windows[b] :]
                rows = window[since[b] :]
                hash_BL[b, :n], is_item_BL[b, :n] = rows["item_hash"], rows["is_query"] == 0
                self._action_BL[b, :n], self._surface_BL[b, :n] = rows["action"], rows["surface"]
                self._timestamp_BL[b, :n] = rows["timestamp"]
                end = float(window["timestamp"][-1])
                last, surface = max(last, end) if counts[b] > n else end, int(window["surface"][-1])
                if since[b]:
                    before_B[b] = window["timestamp"][since[b] - 1]
                if rows["is_query"].any():
                    texts = request.history.item_ids[len(request.history) - n :]
                    queries += [(b, int(at), texts[at]) for at in np.nonzero(rows["is_query"])[0]]
            if counts[b] > n:
                surface = surface if request.surface is None else request.surface
                self._timestamp_BL[b, n : counts[b]], self._surface_BL[b, n : counts[b]] = last, surface
            last_B[b], last_surface_B[b] = last, surface
            if request.context_query is not None:
                queries.append((b, n, request.context_query))
                self._action_BL[b, n] = searching
                n += 1
            if request.context_item is not None:
                hash_BL[b, n], is_item_BL[b, n] = hash_id(request.context_item), True
                self._action_BL[b, n] = engaging
        self._item_BLD[is_item_BL] = item_vectors(bundle, hash_BL[is_item_BL])
        for b, request in enumerate(requests):
            if request.context_vector is not None:  # the context's item comes last
                self._item_BLD[b, counts[b] - 1] = request.context_vector
        if queries:
            bags = np.stack([query_bag(text, config) for _, _, text in queries])
            row, at, _ = zip(*queries, strict=True)
            self._item_BLD[row, at] = bundle.model.query_vectors(torch.from_numpy(bags)).numpy()
        self._before_B1 = torch.from_numpy(before_B)[:, None]
        self.last_B, self.last_surface_B = torch.from_numpy(last_B), torch.tensor(last_surface_B)

    def tokens(self) -> Tensor:
        """x_BLD; what stands behind a row's last event is meaningless.

        Raises:
            IndexError: the bundle does not know a surface of a history.
        """
        if self._surface_BL.max(initial=0) >= len(self._bundle.vocabulary.surfaces):  # after a redeploy has added one
            raise IndexError("surface: a history holds one that the bundle does not know; wait for the next version")
        timestamp_BL = torch.from_numpy(self._timestamp_BL)
        return self._bundle.fused.tokens(
            torch.from_numpy(self._item_BLD),
            torch.from_numpy(self._action_BL),
            torch.from_numpy(self._surface_BL),
            timestamp_BL,
            torch.cat((self._before_B1, timestamp_BL[:, :-1]), 1),
        )


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
        torch.from_numpy(feature_bag((), model.config)).expand(n, -1),
        torch.zeros(n, model.config.content_width),
        torch.zeros(n, dtype=torch.bool),
    ).numpy()
