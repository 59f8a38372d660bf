"""How users took each version: impressions of its lists, and how many of them were engaged with.

The id of an answer begins with its version (`version_of`), so rows of the archive name the version that made what they
answer. An impression is an item that a user was shown of a list (an event whose action is declared non-engaging); it
is engaged with if an engaging event on the same item and answer follows within `settle_s` of the list's first
impression. A list counts once that time has passed, so that the newest version's have had as long as any.
"""

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from statistics import NormalDist
from typing import Final, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pinrec.config import GateSettings, Vocabulary
from pinrec.verdicts import Refusal
from pinrec.versions import version_number
from streaming.archive import Archive

_REQUEST: Final = re.compile(r"(v\d{6,})\.[0-9a-f]{32}")
_KEPT: Final = 200
"""Versions whose outcomes are remembered, of a few of which the bundles are still there."""
_COLUMNS: Final = ("partition", "offset", "arrived", "item_id", "action", "item_type", "request_id")


def version_of(request_id: str) -> str | None:
    """The version that made an answer; None where the id is not one of ours."""
    match = _REQUEST.fullmatch(request_id)
    return match[1] if match else None


@dataclass(frozen=True, slots=True)
class Outcomes:
    """Sums over lists, which are what a version's rate varies by: places of a list share a user and a moment.

    Attributes:
        lists: that were seen.
        impressions, engaged: sums of n, the items of a list that were shown, and of e, those engaged with.
        nn, en, ee: sums of n^2, e n and e^2.
    """

    lists: int = 0
    impressions: int = 0
    engaged: int = 0
    nn: int = 0
    en: int = 0
    ee: int = 0

    def __add__(self, other: "Outcomes") -> "Outcomes":
        return Outcomes(*(mine + theirs for mine, theirs in zip(_sums(self), _sums(other), strict=True)))

    @property
    def rate(self) -> float:
        """Engaged impressions of all; 0 where there are none."""
        return self.engaged / self.impressions if self.impressions else 0.0

    @property
    def variance(self) -> float:
        """Of the rate, by lists: the linearised variance of a ratio of sums (Cochran, Sampling Techniques, 6.3)."""
        p = self.rate
        squares = max(0.0, self.ee - 2 * p * self.en + p * p * self.nn)
        correction = self.lists / (self.lists - 1) if self.lists > 1 else 1.0
        return correction * squares / self.impressions**2 if self.impressions else math.inf


def _sums(outcomes: Outcomes) -> tuple[int, ...]:
    return tuple(asdict(outcomes).values())


class VersionOutcomes:
    """Outcomes by version, kept up with the archive.

    Args:
        archive: what is read.
        vocabulary: says which actions engage.
        settle_s: how long engagements of a list count.
    """

    def __init__(self, archive: Archive, vocabulary: Vocabulary, settle_s: float) -> None:
        self._archive, self._settle_s = archive, settle_s
        self._engaging = pa.array([action.name for action in vocabulary.actions if action.engaging])
        self._positions: dict[int, int] = {}
        self._open: pa.Table | None = None
        self.of: dict[str, Outcomes] = {}

    def update(self) -> bool:
        """Read what the archive gained and count the lists that have settled. True if a count changed."""
        new = self._archive.read(after=self._positions, columns=_COLUMNS)
        if not len(new):
            return False
        for partition in pc.unique(new["partition"]).to_pylist():
            offsets = new["offset"].filter(pc.equal(new["partition"], partition))
            self._positions[partition] = pc.max(offsets).as_py() + 1
        now = pc.max(new["arrived"]).as_py()
        answers = new.filter(pc.match_substring_regex(new["request_id"].fill_null(""), r"^v\d{6,}\.[0-9a-f]{32}$"))
        rows = answers if self._open is None else pa.concat_tables([self._open, answers])
        if not len(rows):
            return False
        request = rows["request_id"].combine_chunks().dictionary_encode()
        code = request.indices.to_numpy()
        arrived = rows["arrived"].to_numpy()
        first = np.full(len(request.dictionary), np.inf)
        np.minimum.at(first, code, arrived)
        settled = first <= now - self._settle_s
        self._open = rows.filter(pa.array(~settled[code])).combine_chunks()
        if not settled.any():
            return False
        counts = settled[code] & (arrived <= first[code] + self._settle_s)
        counts &= pc.not_equal(rows["item_type"].fill_null("item"), "query").to_numpy()
        self._count(rows.filter(pa.array(counts)), request.dictionary.to_pylist(), code[counts])
        return True

    def _count(self, rows: pa.Table, requests: list[str], code: np.ndarray) -> None:
        item = rows["item_id"].combine_chunks().dictionary_encode().indices.to_numpy().astype(np.int64)
        pair = code.astype(np.int64) * (int(item.max(initial=0)) + 1) + item
        engaging = pc.is_in(rows["action"], self._engaging).to_numpy()
        shown, at = np.unique(pair[~engaging], return_index=True)
        list_ = code[~engaging][at]
        taken = np.isin(shown, pair[engaging])
        n = np.bincount(list_, minlength=len(requests))
        e = np.bincount(list_, taken, len(requests)).astype(np.int64)
        for number in np.flatnonzero(n).tolist():
            version = version_of(requests[number])
            assert version is not None
            mine = int(n[number]), int(e[number])
            one = Outcomes(1, mine[0], mine[1], mine[0] ** 2, mine[0] * mine[1], mine[1] ** 2)
            self.of[version] = self.of.get(version, Outcomes()) + one

        for version in sorted(self.of, key=version_number)[:-_KEPT]:
            del self.of[version]

    def dump(self) -> bytes:
        """As JSON, for `load`. Lists that have not settled are not in it; they are not counted after a restart."""
        versions = {version: asdict(outcomes) for version, outcomes in sorted(self.of.items())}
        return json.dumps({"positions": self._positions, "versions": versions}).encode()

    def load(self, text: bytes) -> None:
        """Go on from what `dump` made.

        Raises:
            ValueError: it was not.
        """
        try:
            raw = json.loads(text)
            positions = {int(partition): int(position) for partition, position in raw["positions"].items()}
            of = outcomes_of(text)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"no outcomes of versions: {error}") from None
        self._positions, self.of = positions, of


def outcomes_of(text: bytes | None) -> dict[str, Outcomes]:
    """Outcomes by version, of a registry's file; none where there is none or it cannot be read."""
    try:
        return {str(version): Outcomes(**sums) for version, sums in json.loads(text or b"{}")["versions"].items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}


@dataclass(frozen=True, slots=True)
class Comparison:
    """The newest versions together against those before them.

    Attributes:
        newest, before: their names, newest first.
        new, old: their outcomes.
    """

    newest: tuple[str, ...] = ()
    before: tuple[str, ...] = ()
    new: Outcomes = Outcomes()
    old: Outcomes = Outcomes()

    @classmethod
    def of(cls, served: Iterable[str], outcomes: Mapping[str, Outcomes], impressions: int) -> Self:
        """As few of the newest as have so many impressions, and of those before them as few as have as many.

        At a version a minute a single one may be seen too little to be judged; together they are.

        Args:
            served: versions that may be compared, newest first.
        """
        comparison = cls()
        for version in served:
            mine = outcomes.get(version, Outcomes())
            if comparison.new.impressions < impressions:
                comparison = replace(comparison, newest=(*comparison.newest, version), new=comparison.new + mine)
            elif comparison.old.impressions < impressions:
                comparison = replace(comparison, before=(*comparison.before, version), old=comparison.old + mine)
            else:
                break
        return comparison

    def drop(self, limits: GateSettings) -> Refusal | None:
        """Why the newest versions are to be taken back, if their rate fell by more than the margin for sure.

        The one-sided test of p_new < (1 - drop) p_old for two independent rates, at `watch_confidence`.
        """
        if min(self.new.impressions, self.old.impressions) < limits.watch_impressions:
            return None
        bound = (1 - limits.watch_drop) * self.old.rate
        error = math.sqrt(self.new.variance + (1 - limits.watch_drop) ** 2 * self.old.variance)
        if self.new.rate + NormalDist().inv_cdf(limits.watch_confidence) * error >= bound:
            return None
        message = (
            f"users engaged with {self.new.engaged} of {self.new.impressions} impressions, before with "
            f"{self.old.engaged} of {self.old.impressions}"
        )
        return Refusal(check="outcomes", figure=self.new.rate, bound=bound, message=message)
