"""Recall on what happened next, against popularity on the very same targets."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pinrec.budget import aims_of_steps, compress
from pinrec.config import Mode, Vocabulary
from pinrec.dataset import EventColumns
from pinrec.exact import Rows
from pinrec.history import window_start
from pinrec.items import Catalogue
from pinrec.model import PinRecModel, previous_timestamps
from pinrec.popularity import Popularity
from pinrec.subjects import Subjects
from pinrec.windows import Windows

Search = Callable[[NDArray[np.float32], int], tuple[NDArray[np.float32], NDArray[np.int64]]]
"""(queries [M, D], k) -> scores [M, k] and catalogue rows [M, k], best first; `ItemIndex.search` is one."""

BATCH: Final = 128
_ALIKE: Final = 0.95  # cosine above which two embeddings of an outcome are one, as in serving by default
_SHARES: Final = 1 << 20  # of a budget: `compress` adds up whole numbers
_SPARE: Final = 22  # results of a search beyond the k wanted, as some of them were seen


def exact_search(table: Rows) -> Search:
    """Search by all inner products with `table` [N, D]."""
    items = torch.from_numpy(table[:])

    def search(queries: NDArray[np.float32], k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        scores, rows = (torch.from_numpy(queries) @ items.T).topk(min(k, len(items)), 1)
        return scores.numpy(), rows.numpy()

    return search


@dataclass(frozen=True)
class Cases:
    """Users to be tested: the events each is served from, and what each engaged with then.

    Attributes:
        position_BL, length_B: positions of the histories in `Windows`, right-padded by repeats.
        targets: distinct catalogue rows of each user, in order.
        seen: catalogue rows in each history.
        cold: users with targets but no history; they are not among the B.
    """

    position_BL: NDArray[np.int64]
    length_B: NDArray[np.int64]
    targets: list[NDArray[np.int64]]
    seen: list[NDArray[np.int64]]
    cold: int


def outcome_shares(events: EventColumns, vocabulary: Vocabulary) -> dict[str, float]:
    """How the engaged item events divide over the outcomes; the budget of requests that name none."""
    counts = np.bincount(events.action[events.engaged(vocabulary)], minlength=len(vocabulary.actions))
    total = max(1, int(counts.sum()))
    return {a.name: int(n) / total for a, n in zip(vocabulary.actions, counts, strict=True) if a.engaging and n}


def prequential(
    model: PinRecModel,
    table: Rows,
    catalogue: Catalogue,
    events: EventColumns,
    since_row: int,
    k: int = 10,
    *,
    mode: Mode = "multi_token",
    steps: int = 2,
    in_turn: bool = False,
    outcomes: Mapping[str, float] | None = None,
    only: str | None = None,
    popularity: Popularity | None = None,
    search: Search | None = None,
    max_users: int = 2_000,
    seed: int = 0,
    among: NDArray[np.uint64] | None = None,
) -> dict[str, float]:
    """Recall of `model`, trained on rows before `since_row`, on the engaged item events from there on.

    A user is tested if new rows hold an engaged item event. The history is what serving would have encoded just
    before the first of these: the user's events in (timestamp, row) order, at most `config.history` of them, cut by
    `window_start`. Targets are the distinct catalogue items of the user's engaged new events that are not in
    this history (one exposure may give several events; an item already there would be no discovery). Items of the
    history are not retrieved either, by the model or by popularity. Generation is free-running: the second
    step's input is the first step's output, nothing of the future is seen but the time of the request, which
    is that of the last event in the history.

    Args:
        table: item vectors float32[N, D] in the order of `catalogue`.
        mode, steps, in_turn: how answers are made; see `GenerationConfig`.
        outcomes: budget over outcome names; None = as frequent as before `since_row`.
        only: count targets of this outcome only.
        popularity: of the events before `since_row`; None computes it.
        search: None searches exactly.
        max_users: a random sample of this many users is tested.
        among: count these items only, by their hashes: those that all versions have that are to be compared.

    Returns:
        recall@k: share of targets among k items in all (the embeddings divide k among them), mean over users.
        recall@k_popularity: the same of the k most popular items, all surfaces together.
        recall@k_unordered: the paper's measure: a target counts if any embedding has it in its own top k; those that
            are nearly alike are one. It retrieves more than k items, so it is not to be compared with the other two.
        diversity: distinct items in all lists of k, over their summed length.
        users, targets, cold_users: counts; cold users (no history) are not tested.
        With k in place of the letter; recalls are NaN if no user could be tested.
    """
    before = events.before(since_row)
    popularity = popularity or Popularity.of(before, catalogue, model.vocabulary)
    outcomes = outcomes or outcome_shares(before, model.vocabulary)
    lists = _Lists(model, search or exact_search(table), mode, steps, in_turn, outcomes)
    counts = _counted(events, catalogue, model.vocabulary, since_row, only, among)
    events, since_row, counts = _of_some_users(events, since_row, counts, max_users, seed)
    windows, subjects = Windows(events, model.vocabulary), Subjects(events, catalogue, model.config)
    cases = _cases(windows, events, catalogue, model, since_row, counts)
    popular = popularity.top(None, len(popularity.ranked[-1]))
    hits, hits_unordered, hits_popular, retrieved = [], [], [], []
    for at in range(0, len(cases.length_B), BATCH):
        rows = slice(at, at + BATCH)
        tokens = _tokens(model, windows, subjects, events, cases.position_BL[rows, : cases.length_B[rows].max()])
        made = lists.make(tokens, cases.length_B[rows], cases.seen[rows], k)
        for (found, pooled), targets, seen in zip(made, cases.targets[rows], cases.seen[rows], strict=True):
            unseen = popular[: k + len(seen)]
            unseen = unseen[~np.isin(unseen, seen)][:k]
            hits.append(np.isin(targets, found).mean())
            hits_unordered.append(np.isin(targets, pooled).mean())
            hits_popular.append(np.isin(targets, unseen).mean())
            retrieved.append(found)
    listed = np.concatenate(retrieved) if retrieved else np.zeros(0, np.int64)
    mean = {
        f"recall@{k}": hits,
        f"recall@{k}_popularity": hits_popular,
        f"recall@{k}_unordered": hits_unordered,
    }
    return {name: float(np.mean(values)) if values else float("nan") for name, values in mean.items()} | {
        "diversity": len(np.unique(listed)) / max(1, len(listed)),
        "users": float(len(hits)),
        "targets": float(sum(map(len, cases.targets))),
        "cold_users": float(cases.cold),
    }


def _counted(
    events: EventColumns,
    catalogue: Catalogue,
    vocabulary: Vocabulary,
    since_row: int,
    only: str | None,
    among: NDArray[np.uint64] | None,
) -> NDArray[np.bool_]:
    """bool[n]: which of the events may give targets."""
    new = events.at(np.arange(since_row, len(events)))
    may = new.engaged(vocabulary) & (catalogue.rows(new.item_hash) >= 0)
    if among is not None:
        may &= np.isin(new.item_hash, among)
    if only is not None:
        may &= new.action == vocabulary.action_index[only]
    counts = np.zeros(len(events), np.bool_)
    counts[since_row:] = may
    return counts


def _of_some_users(
    events: EventColumns, since_row: int, counts: NDArray[np.bool_], max_users: int, seed: int
) -> tuple[EventColumns, int, NDArray[np.bool_]]:
    """Events, row and counts of the users to be tested alone: what the others did is nothing to them."""
    users = np.unique(events.user[counts])
    if len(users) > max_users:
        users = np.sort(np.random.default_rng(seed).choice(users, max_users, replace=False))
    tested = np.zeros(len(events.user_ids), np.bool_)
    tested[users] = True
    rows = np.flatnonzero(tested[events.user])
    return events.at(rows), int(np.searchsorted(rows, since_row)), counts[rows]


def _cases(
    windows: Windows,
    events: EventColumns,
    catalogue: Catalogue,
    model: PinRecModel,
    since_row: int,
    counts_n: NDArray[np.bool_],
) -> Cases:
    config, vocabulary = model.config, model.vocabulary
    row_of = catalogue.rows(events.item_hash[windows.order])
    row_of[events.is_query[windows.order]] = -1
    engaged = events.engaged(vocabulary)[windows.order] & (windows.order >= since_row)
    counts = counts_n[windows.order]
    users = np.unique(windows.user[counts])
    spans, targets, seen, cold = [], [], [], 0
    for user in users:
        start, end = int(windows.start[user]), int(windows.end[user])
        first = start + int(np.argmax(engaged[start:end]))
        lo = start + window_start(first - start, config.history, config.stride)
        ahead = np.unique(row_of[first:end][counts[first:end]])
        known = np.unique(row_of[lo:first])
        ahead = np.setdiff1d(ahead, known)
        if not len(ahead):
            continue
        if lo == first:
            cold += 1
            continue
        spans.append((lo, first))
        targets.append(ahead)
        seen.append(known)
    if not spans:
        return Cases(np.zeros((0, 1), np.int64), np.zeros(0, np.int64), [], [], cold)
    # Alike lengths together: less padding.
    order = sorted(range(len(spans)), key=lambda i: spans[i][1] - spans[i][0])
    lo, hi = np.array(spans, np.int64)[order].T
    position = np.minimum(lo[:, None] + np.arange(int((hi - lo).max())), hi[:, None] - 1)
    return Cases(position, hi - lo, [targets[i] for i in order], [seen[i] for i in order], cold)


@torch.no_grad()
def _tokens(
    model: PinRecModel, windows: Windows, subjects: Subjects, events: EventColumns, position_BL: NDArray[np.int64]
) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens x_BLD, timestamps and surfaces."""
    used, codes = np.unique(subjects.of_event[windows.order[position_BL]], return_inverse=True)
    items = subjects.vectors(model, used)[torch.from_numpy(codes.reshape(position_BL.shape))]
    timestamp = torch.from_numpy(windows.timestamp[position_BL])
    surface = torch.from_numpy(events.surface[windows.order[position_BL]].astype(np.int64))
    action = torch.from_numpy(windows.action[position_BL])
    return model.tokens(items, action, surface, timestamp, previous_timestamps(timestamp)), timestamp, surface


class _Lists:
    """Free-running generation as serving does it, without its filters and caches."""

    def __init__(
        self,
        model: PinRecModel,
        search: Search,
        mode: Mode,
        steps: int,
        in_turn: bool,
        outcomes: Mapping[str, float],
    ) -> None:
        self.model, self.search = model, search
        aims = {-1: 1.0}
        if mode != "unconditioned" and outcomes:
            index = model.vocabulary.action_index
            largest_first = sorted(outcomes.items(), key=lambda pair: -pair[1])
            aims = {index[name]: share for name, share in largest_first if share > 0}
        offsets = model.config.offsets_s if mode == "multi_token" else (-1.0,)
        number_SE = np.repeat(aims_of_steps(len(aims), steps, in_turn), len(offsets), axis=1)
        self.outcome_SE = torch.tensor([*aims, -1])[number_SE]  # no outcome is number -1, the last one
        self.offset_E = torch.tensor(offsets).repeat(number_SE.shape[1] // len(offsets))
        self.fed_back = int(np.argmin(offsets))
        # An outcome's share is divided among its embeddings; the last number is that of none, which has no share.
        embeddings = np.bincount(number_SE[number_SE >= 0], minlength=len(aims) + 1)
        share = np.array([*aims.values(), 0.0]) / np.maximum(1, embeddings) / sum(aims.values())
        self.share_E = share[number_SE].reshape(-1)

    @torch.no_grad()
    def make(
        self,
        tokens: tuple[Tensor, Tensor, Tensor],
        length_B: NDArray[np.int64],
        seen: list[NDArray[np.int64]],
        k: int,
    ) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
        """For each row k rows in all, and the rows in any embedding's own top k; none of them seen."""
        model, (x_BLD, timestamp_BL, surface_BL) = self.model, tokens
        rows, last = torch.arange(len(x_BLD)), torch.from_numpy(length_B) - 1
        h_BLD, cache = model.prefill(x_BLD, last + 1)
        h_BD, now, surface = h_BLD[rows, last], timestamp_BL[rows, last], surface_BL[rows, last]
        offset_BE, emitted = self.offset_E.expand(len(rows), -1), []
        for step, outcome_E in enumerate(self.outcome_SE):
            outcome_BE = outcome_E.expand(len(rows), -1)
            e_BED = model.head(h_BD, outcome_BE, torch.full_like(outcome_BE, -1), offset_BE)
            emitted.append(e_BED)
            if step + 1 < len(self.outcome_SE):
                aim = int(outcome_E[0])
                action = torch.full_like(last, aim if aim >= 0 else min(model.vocabulary.engaging))
                h_BD = model.decode(model.tokens(e_BED[:, self.fed_back], action, surface, now, now), cache)
        made_BED = torch.cat(emitted, 1).numpy()
        share_BE, aimed_BE = (
            np.broadcast_to(of_all, made_BED.shape[:2])
            for of_all in (np.rint(_SHARES * self.share_E).astype(np.int64), self.outcome_SE.flatten().numpy())
        )
        share_BE = compress(made_BED, aimed_BE, share_BE, _ALIKE)
        found = self._unseen(made_BED, share_BE > 0, seen, k)
        return [self._merge(own, share_E[share_E > 0], k) for own, share_E in zip(found, share_BE, strict=True)]

    def _unseen(
        self, e_BED: NDArray[np.float32], asked_BE: NDArray[np.bool_], seen: list[NDArray[np.int64]], k: int
    ) -> list[list[NDArray[np.int64]]]:
        """For each row of the batch, of its embeddings that are asked for, the best k rows of the catalogue not seen.

        Few users have seen much of what is best for them: only for those is it searched as deep as might be needed.
        """
        lists: list[list[NDArray[np.int64]]] = [[] for _ in seen]
        short = list(range(len(seen)))
        deepest = k + max((len(rows) for rows in seen), default=0)
        for fetch in sorted({min(k + _SPARE, deepest), deepest}):
            if not short:
                break
            _, found = self.search(np.concatenate([e_BED[b, asked_BE[b]] for b in short]), fetch)
            ends, searched, short = np.cumsum(asked_BE[short].sum(1)), short, []
            for b, found_EK in zip(searched, np.split(found, ends[:-1]), strict=True):
                may_EK = (found_EK >= 0) & ~np.isin(found_EK, seen[b])
                lists[b] = [row[may] for row, may in zip(found_EK, may_EK, strict=True)]
                if fetch < k + len(seen[b]) and int(may_EK.sum(1).min()) < k:
                    short.append(b)
        return lists

    @staticmethod
    def _merge(
        own: list[NDArray[np.int64]], shares: NDArray[Any], k: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Divide k places by share: each goes to the embedding that is furthest behind its share."""
        shares = shares / shares.sum()
        taken: list[int] = []
        used, at = np.zeros(len(own)), np.zeros(len(own), np.int64)
        open_ = np.array([len(row) > 0 for row in own])
        while len(taken) < k and open_.any():
            e = int(np.argmax(np.where(open_, shares * (len(taken) + 1) - used, -np.inf)))
            row = int(own[e][at[e]])
            at[e] += 1
            open_[e] = at[e] < len(own[e])
            if row not in taken:
                taken.append(row)
                used[e] += 1
        return np.array(taken, np.int64), np.unique(np.concatenate([row[:k] for row in own]))
