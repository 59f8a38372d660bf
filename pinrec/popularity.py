"""What is popular now, by surface: the baseline of every evaluation, and the answer to users nothing is known of."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final, Self

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from pinrec.config import Vocabulary
from pinrec.dataset import EventColumns
from pinrec.items import Catalogue

POPULARITY_FILE: Final = "popularity.safetensors"
DEPTH: Final = 2_000


@dataclass(frozen=True, eq=False)
class Popularity:
    """Catalogue rows by recent engagement.

    Attributes:
        ranked: int64[S + 1, depth], most popular first, for each of the S surfaces and, last, for all of
            them together; -1 padding behind the last item that was engaged with at all.
        newest: int64[<= depth], rows with a known time of creation, newest first.
    """

    ranked: NDArray[np.int64]
    newest: NDArray[np.int64]

    @classmethod
    def of(
        cls, events: EventColumns, catalogue: Catalogue, vocabulary: Vocabulary, half_life_s: float = 86_400.0
    ) -> Self:
        """Sum over engaged item events of 0.5 ** (age / half_life_s), the age counted from the newest event."""
        surfaces, n = len(vocabulary.surfaces), len(catalogue)
        rows = catalogue.rows(events.item_hash)
        use = events.engaged(vocabulary) & (rows >= 0)
        newest_s = events.timestamp.max(initial=0.0)
        weight = np.exp2((events.timestamp[use] - newest_s) / half_life_s)
        cell = events.surface[use].astype(np.int64) * n + rows[use]
        score = np.bincount(cell, weight, surfaces * n).reshape(surfaces, n)
        score = np.concatenate((score, score.sum(0, keepdims=True)))
        ranked = np.full((surfaces + 1, min(n, DEPTH)), -1, np.int64)
        for surface, row_scores in enumerate(score):
            best = np.argsort(-row_scores, kind="stable")[:DEPTH]
            best = best[row_scores[best] > 0]
            ranked[surface, : len(best)] = best
        newest = np.argsort(-catalogue.created_at, kind="stable")[:DEPTH]
        return cls(ranked, newest[catalogue.created_at[newest] > 0])

    def top(self, surface: int | None, k: int) -> NDArray[np.int64]:
        """At most k rows, most popular first; all surfaces together follow where one surface has too few."""
        everywhere = self.ranked[-1]
        rows = everywhere if surface is None else np.concatenate((self.ranked[surface], everywhere))
        return _distinct(rows[rows >= 0])[:k]

    def cold_start(self, surface: int | None, k: int, fresh_every: int = 5) -> NDArray[np.int64]:
        """At most k rows for a user nothing is known of: popular ones, every `fresh_every`-th a new item."""
        known = self._cold_starts.get((surface, fresh_every))
        if known is None:
            known = self._cold_starts[surface, fresh_every] = self._cold_start(surface, fresh_every)
        return known[:k]

    @cached_property
    def _cold_starts(self) -> dict[tuple[int | None, int], NDArray[np.int64]]:
        return {}

    def _cold_start(self, surface: int | None, fresh_every: int) -> NDArray[np.int64]:
        popular, fresh = self.top(surface, 2 * DEPTH), self.newest
        # A new item stands behind every fresh_every - 1 popular ones.
        between = (fresh_every - 1) * np.arange(1.0, len(fresh) + 1) - 0.5
        places = np.concatenate((np.arange(len(popular), dtype=float), between))
        return _distinct(np.concatenate((popular, fresh))[np.argsort(places, kind="stable")])

    def save(self, folder: Path) -> None:
        """Write `popularity.safetensors` into `folder`."""
        save_file({"ranked": self.ranked, "newest": self.newest}, folder / POPULARITY_FILE)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what `save` wrote."""
        return cls(**load_file(folder / POPULARITY_FILE))


def _distinct(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """First occurrences, in order."""
    _, first = np.unique(rows, return_index=True)
    return rows[np.sort(first)]
