"""Keys and values of users, kept between their events: a new event costs one token, whatever the history.

A state is used only for the very prefix of a history that it was made of, under the very bundle that made it; whatever
else a user's history has become is encoded anew. So an answer never depends on what was kept.

Shapes: see `pinrec.arena` and `pinrec.encoding`.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
import xxhash
from torch import Tensor

from pinrec.arena import POSITIONS, Arena
from pinrec.backbone import KVCache
from pinrec.encoding import Encoded, NewEvents, Part, by_length, window_length
from pinrec.history import ROW, History
from pinrec.requests import GenerationRequest

if TYPE_CHECKING:
    from pinrec.bundle import Bundle

_MOST_NEW: Final = 16
"""Events by which a state is brought up to date; with more, all of a batch would be padded to them."""


@dataclass(slots=True)
class _State:
    """What is kept of one user: the first `length` events of a window."""

    length: int
    digest: bytes
    h_D: Tensor
    blocks: list[int]


@dataclass(frozen=True, slots=True)
class StatesReport:
    """What the states did and what they hold. Counts are since the start."""

    users: int
    bytes: int
    budget_bytes: int
    hits: int
    misses: int
    evictions: int


class UserStates:
    """The `Encoder` that keeps the keys and values of known users. For one thread, and one bundle at a time.

    Args:
        budget: bytes; the least recently used states make room. With too little for a batch's users, some are not kept.
        kept: type of keys and values. They are rounded to it whether or not they are kept, so answers stay the same.
    """

    def __init__(self, budget: int, kept: torch.dtype = torch.int8) -> None:
        self._budget, self._kept = budget, kept
        self._arena: Arena | None = None
        self._made_by: Bundle | None = None
        self._states: OrderedDict[str, _State] = OrderedDict()
        self._hits = self._misses = self._evictions = 0
        self._successor: UserStates | None = None

    @property
    def report(self) -> StatesReport:
        """How things stand."""
        held = 0 if self._arena is None else (self._arena.blocks - self._arena.free) * self._arena.block_bytes
        return StatesReport(len(self._states), held, self._budget, self._hits, self._misses, self._evictions)

    @property
    def recent(self) -> list[str]:
        """Users of whom something is kept, the most recently used first."""
        return list(reversed(self._states))

    def hand_over_to(self, successor: "UserStates") -> None:
        """Go on with what `successor` keeps as soon as its bundle is asked for; from here on it is this object's.

        Whom this object has met last stays longest there as well. Until the bundle changes both take their memory.
        """
        for user_id in [user_id for user_id in self._states if user_id in successor._states]:
            successor._states.move_to_end(user_id)
        self._successor = successor

    def forget(self, user_ids: Iterable[str]) -> None:
        """Drop what is kept of these users."""
        gone = list(user_ids)
        for user_id in gone:
            self._drop(user_id)
        if self._successor is not None:
            self._successor.forget(gone)

    def clear(self) -> None:
        """Drop what is kept of everybody."""
        self._states.clear()
        if self._arena is not None:
            self._arena.reset()
        if self._successor is not None:
            self._successor.clear()

    @torch.inference_mode()
    def __call__(self, bundle: "Bundle", requests: Sequence[GenerationRequest], /) -> list[Part]:
        """See `Encoder`. Whatever is raised, nothing is kept that was half made."""
        try:
            return self._encoded(bundle, requests)
        except BaseException:
            self.clear()
            raise

    def _encoded(self, bundle: "Bundle", requests: Sequence[GenerationRequest]) -> list[Part]:
        arena = self._arena_for(bundle)
        requests = _consistent(requests)
        windows = [window_length(bundle, request) for request in requests]
        digests = [xxhash.xxh3_128() for _ in requests]
        since = [self._known(*each) for each in zip(requests, windows, digests, strict=True)]
        lengths = [n + request.context for n, request in zip(windows, requests, strict=True)]
        # A batch's own states must outlive it: what makes room for one must not have been counted on by another.
        using = {request.user_id or "" for request, known in zip(requests, since, strict=True) if known}
        parts: list[Part] = []
        for new in (True, False):
            for part in by_length([b for b, known in enumerate(since) if (not known) == new], lengths):
                mine, known = [requests[b] for b in part], [since[b] for b in part]
                if not new and all(lengths[b] == since[b] for b in part):
                    parts.append((part, self._as_kept(arena, mine, known)))
                    continue
                events = NewEvents(bundle, mine, known)
                if new:
                    h_BLD, cache = bundle.fused.prefill(events.tokens(), events.count_B, self._kept)
                else:
                    h_BLD, cache = self._extended(arena, bundle, mine, known, events)
                of_history_BD = self._ends(bundle, mine, h_BLD, events.history_B)
                context = any(request.context for request in mine)
                h_BD = self._ends(bundle, mine, h_BLD, events.count_B) if context else of_history_BD
                self._keep(arena, bundle, mine, events, cache, of_history_BD, [digests[b] for b in part], using)
                parts.append((part, Encoded(h_BD, cache, events.last_B, events.last_surface_B)))
        return parts

    def _as_kept(self, arena: Arena, requests: Sequence[GenerationRequest], known: Sequence[int]) -> Encoded:
        """Histories that nothing has come to: who only asks pays for no more than looking up what is kept."""
        states = [self._states[request.user_id or ""] for request in requests]
        newest_B = np.array([request.history.rows[-1] for request in requests if request.history], ROW)
        return Encoded(
            torch.stack([state.h_D for state in states]),
            arena.gather([state.blocks for state in states], torch.tensor(known), 0),
            torch.from_numpy(newest_B["timestamp"].astype(np.float64)),
            torch.from_numpy(newest_B["surface"].astype(np.int64)),
        )

    def _ends(self, bundle: "Bundle", requests: Sequence[GenerationRequest], h_BLD: Tensor, count_B: Tensor) -> Tensor:
        """The states behind so many new events of each; where nothing is new, the one that is kept."""
        if h_BLD.shape[1] == 1 and int(count_B.min()):
            return h_BLD[:, 0]
        h_BD = h_BLD[torch.arange(len(requests)), (count_B - 1).clamp(min=0)]
        held_BD = torch.stack([self._held(request, bundle) for request in requests])
        return h_BD.where((count_B > 0)[:, None], held_BD)

    def _extended(
        self,
        arena: Arena,
        bundle: "Bundle",
        requests: Sequence[GenerationRequest],
        known: Sequence[int],
        events: NewEvents,
    ) -> tuple[Tensor, KVCache]:
        blocks = [self._states[request.user_id or ""].blocks for request in requests]
        length_B, most = torch.tensor(known), int(events.count_B.max())
        cache = arena.gather(blocks, length_B, most)
        if not most:
            return torch.zeros(len(blocks), 1, bundle.model.config.width), cache
        h_BND = bundle.fused.extend(events.tokens(), cache, self._kept)
        cache.rewind(length_B + events.count_B)
        return h_BND, cache

    def _arena_for(self, bundle: "Bundle") -> Arena:
        if self._made_by is not bundle:
            successor, self._successor = self._successor, None
            if successor is not None and successor._made_by is bundle:
                self._arena, self._states = successor._arena, successor._states
            else:
                self.clear()
            self._made_by = bundle
        if self._arena is None or not self._arena.fits(bundle.model.config):
            self._arena = Arena(bundle.model.config, self._budget, self._kept)
        return self._arena

    def _known(self, request: GenerationRequest, window: int, digest: "xxhash.xxh3_128") -> int:
        """How many of the window's events need not be encoded; a state that does not fit is dropped.

        `digest` becomes that of these events.
        """
        if request.user_id is None or request.history is None or not window:
            return 0
        state = self._states.get(request.user_id)
        if state is not None:
            if state.length <= window <= state.length + _MOST_NEW:
                digest.update(_rows(request.history, window, 0, state.length))
                if state.digest == digest.digest():
                    self._hits += 1
                    self._states.move_to_end(request.user_id)
                    return state.length
                digest.reset()
            self._drop(request.user_id)
        self._misses += 1
        return 0

    def _held(self, request: GenerationRequest, bundle: "Bundle") -> Tensor:
        state = self._states.get(request.user_id or "")
        return torch.zeros(bundle.model.config.width) if state is None else state.h_D

    def _keep(
        self,
        arena: Arena,
        bundle: "Bundle",
        requests: Sequence[GenerationRequest],
        events: NewEvents,
        cache: KVCache,
        h_BD: Tensor,
        digests: Sequence["xxhash.xxh3_128"],
        using: set[str],
    ) -> None:
        """Keep what a part's histories have become; what there is no room for stays as it was, or unknown."""
        held: list[list[int]] = [[] for _ in requests]
        since, until = [0] * len(requests), [0] * len(requests)
        for b, (request, new) in enumerate(zip(requests, events.history_B.tolist(), strict=True)):
            user_id, history = request.user_id, request.history
            if not new or user_id is None or history is None:
                continue
            window = window_length(bundle, request)
            state = self._states.get(user_id)
            known = 0 if state is None else state.length
            if known == window:  # another request of this batch has brought it up to date
                continue
            blocks = [] if state is None else state.blocks
            more = -(-window // POSITIONS) - len(blocks)
            if not self._make_room(arena, more, using | {user_id}):
                continue
            held[b] = blocks + arena.take(more)
            since[b], until[b] = known, window
            digests[b].update(_rows(history, window, window - new, window))
            self._states[user_id] = _State(window, digests[b].digest(), h_BD[b].clone(), held[b])
            using.add(user_id)
        arena.store(held, cache, since, until)

    def _make_room(self, arena: Arena, blocks: int, using: set[str]) -> bool:
        while arena.free < blocks:
            oldest = next(iter(self._states), None)
            if oldest is None or oldest in using:  # those in use are the youngest
                return False
            self._drop(oldest)
            self._evictions += 1
        return True

    def _drop(self, user_id: str) -> None:
        state = self._states.pop(user_id, None)
        if state is not None and self._arena is not None:
            self._arena.give(state.blocks)


def _consistent(requests: Sequence[GenerationRequest]) -> list[GenerationRequest]:
    """The requests; whose history differs from an earlier one's of the same user is nobody's, so that none is mixed."""
    first: dict[str, GenerationRequest] = {}
    return [
        request
        if request.user_id is None
        or first.setdefault(request.user_id, request).history is request.history
        or _packed(first[request.user_id]) == _packed(request)
        else replace(request, user_id=None)
        for request in requests
    ]


def _packed(request: GenerationRequest) -> bytes:
    return b"" if request.history is None else request.history.packed


def _rows(history: History, window: int, begin: int, end: int) -> memoryview:
    """Some of the last `window` events: everything that tokens are made of, and nothing else."""
    start = len(history) - window
    return history.rows[start + begin : start + end].data
