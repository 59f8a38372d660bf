"""What training knows of the archive, and where it stands in it.

A round's events are a pure function of the archive's content, of where training stood and of where the round ends:
not of how often the archive was looked at or of a restart in between. So a round that was cut short can be repeated.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from pinrec.config import Frozen, Vocabulary
from pinrec.dataset import EventColumns
from pinrec.hashing import hash_id
from streaming.archive import Archive, Gap
from streaming.config import TrainerSettings

COLUMNS: Final = (
    *("partition", "offset", "arrived", "user_id", "item_id", "action", "surface", "timestamp"),
    *("item_type", "query", "feed_id"),
)
_STANDING: Final = "trainer.standing"
_SLICES: Final = 1 << 20


class Reach(Frozen):
    """Which events some weights were trained on: those before the positions, less what is held out.

    Attributes:
        positions: next offset by partition.
        held: epoch s; what held-out users did that arrived then or later is not among them.
    """

    positions: dict[int, int] = Field(default_factory=dict)
    held: float = 0.0

    def covers(self, rows: "Rows") -> NDArray[np.bool_]:
        """Which of the rows, bool[n]."""
        before: NDArray[np.bool_] = rows.offset < _by_partition(self.positions, rows.partition)
        return before & ~(rows.held_out & (rows.arrived >= self.held))

    def reaches(self, other: "Reach") -> bool:
        """Whether it goes as far as another one in every partition."""
        return all(self.positions.get(partition, 0) >= position for partition, position in other.positions.items())


class Standing(Reach):
    """Where training stands: part of its checkpoint, and of every bundle beside the learner's state.

    Attributes:
        rounds: made so far.
        floor: epoch s; what arrived earlier is looked at no longer (`trainer.max_events`).
        withdrawn: pairs (of the version gone back to, of the weights given up); what lies between is never
            trained on again.
    """

    rounds: int = 0
    floor: float = 0.0
    withdrawn: tuple[tuple[Reach, Reach], ...] = ()

    @property
    def reach(self) -> Reach:
        """What the weights were trained on."""
        return Reach(positions=self.positions, held=self.held)

    def gone_back(self, version: "Standing") -> "Standing":
        """Where training stands when it goes on from a version, giving up the weights that stand here."""
        rounds = max(self.rounds, version.rounds)
        if not self.positions:  # weights that know nothing are given up; what was withdrawn before stays so
            others = [pair for pair in self.withdrawn if pair not in version.withdrawn and not version.reaches(pair[1])]
            floor, withdrawn = max(self.floor, version.floor), (*version.withdrawn, *others)
            return version.model_copy(update={"rounds": rounds, "floor": floor, "withdrawn": withdrawn})
        if version.reach == self.reach:
            return version.model_copy(update={"rounds": rounds})
        partitions = self.positions.keys() | version.positions.keys()
        return Standing(
            positions={p: max(self.positions.get(p, 0), version.positions.get(p, 0)) for p in partitions},
            held=max(self.held, version.held),
            rounds=rounds,
            floor=max(self.floor, version.floor),
            withdrawn=(*version.withdrawn, (version.reach, self.reach)),
        )

    def anew(self) -> "Standing":
        """Where training stands that begins anew; what was withdrawn stays so."""
        return Standing(rounds=self.rounds, floor=self.floor, withdrawn=self.withdrawn)

    def tensors(self) -> dict[str, Tensor]:
        """As a tensor beside those of the learner."""
        return {_STANDING: torch.frombuffer(bytearray(self.model_dump_json().encode()), dtype=torch.uint8)}

    @classmethod
    def taken_from(cls, state: dict[str, Tensor]) -> Self:
        """What `tensors` gave, taken out of `state`.

        Raises:
            KeyError: it is not there.
            ValueError: it cannot be read.
        """
        return cls.model_validate_json(state.pop(_STANDING).numpy().tobytes())


@dataclass(frozen=True)
class Rows:
    """What of n archived rows decides which of them a round takes."""

    partition: NDArray[np.int64]
    offset: NDArray[np.int64]
    arrived: NDArray[np.float64]
    held_out: NDArray[np.bool_]

    def take(self, rows: NDArray[np.int64]) -> "Rows":
        """Those rows, in this order."""
        return Rows(self.partition[rows], self.offset[rows], self.arrived[rows], self.held_out[rows])


@dataclass(frozen=True)
class RoundEvents:
    """The events of a round: [0, since) known before, [since, held) new, the rest held out.

    Attributes:
        rows: where the events lie in the archive.
        named: ids of the items in them.
        after: where training stands once it has taken in the new ones.
    """

    events: EventColumns
    rows: Rows
    since: int
    held: int
    named: list[str]
    after: Standing

    def known_to(self, reach: Reach) -> NDArray[np.int64]:
        """Rows of the events that weights of this reach were trained on, ascending."""
        return np.flatnonzero(reach.covers(self.rows))


class TrainingLog:
    """The archive's newest events in memory, kept up to date. One thread at a time.

    Args:
        archive, vocabulary, settings: see there.
    """

    def __init__(self, archive: Archive, vocabulary: Vocabulary, settings: TrainerSettings) -> None:
        self._archive, self._vocabulary, self._settings = archive, vocabulary, settings
        self._rows: pa.Table | None = None
        self.positions: dict[int, int] = {}
        """Next offset by partition, of what was read."""
        self.gaps: list[Gap] = []
        """What the archive lacks."""
        self._held_out: dict[str, bool] = {}

    def __len__(self) -> int:
        return 0 if self._rows is None else len(self._rows)

    def update(self) -> None:
        """Take in what the archive gained, and forget what deleted users did."""
        new = self._archive.read(after=self.positions, columns=COLUMNS)
        if self._rows is None:
            self._rows = new
        else:
            kept = self._rows
            if forgotten := self._archive.deletions(after=self.positions):
                kept = kept.filter(pc.invert(pc.is_in(kept["user_id"], pa.array(forgotten))))
            self._rows = pa.concat_tables([kept, new]).combine_chunks()
        if len(new):
            partition, offset = new["partition"].to_numpy(), new["offset"].to_numpy()
            for number in np.unique(partition).tolist():
                end = int(offset[partition == number].max()) + 1
                self.positions[number] = max(self.positions.get(number, 0), end)
            self.gaps = self._archive.gaps()

    def round(self, standing: Standing, until: Mapping[int, int] | None = None) -> RoundEvents | None:
        """The events of the round that begins at `standing`.

        Args:
            until: next offset by partition; later events are left for a later round. None = up to the newest.

        Returns:
            None where there are no events at all.
        """
        if self._rows is None:
            return None
        until = dict(self.positions if until is None else until)
        table = self._rows
        rows = self._describe(table)
        use = (rows.arrived >= standing.floor) & (rows.offset < _by_partition(until, rows.partition))
        withdrawn = []
        for kept, given_up in standing.withdrawn:
            left_out = given_up.covers(rows) & ~kept.covers(rows) & (rows.arrived >= standing.floor)
            use &= ~left_out
            if left_out.any():  # else all it kept away has been deleted, or is too old to come again
                withdrawn.append((kept, given_up))
        order = np.flatnonzero(use)
        # In one order however the archive was read: files of one partition may lie behind those of another.
        order = order[np.lexsort((rows.offset[order], rows.partition[order], rows.arrived[order]))]
        floor = standing.floor
        if len(order) > self._settings.max_events:
            floor = float(rows.arrived[order[-self._settings.max_events]])
            order = order[rows.arrived[order] >= floor]
            self._rows = table.filter(pa.array(rows.arrived >= floor)).combine_chunks()
        if not len(order):
            return None
        held = max(standing.held, self._held_since(table, rows, order))
        known = standing.covers(rows)[order]
        aside = ~known & rows.held_out[order] & (rows.arrived[order] >= held)
        # What is known and held out can be one and the same where settings changed: then it is known.
        ranked = np.argsort(np.where(known, 0, np.where(aside, 2, 1)), kind="stable")
        order = order[ranked]
        ordered = table.take(order)
        events = EventColumns.of_columns(_columns(ordered), self._vocabulary)
        is_item = pc.equal(ordered["item_type"], "item")
        named = pc.unique(ordered["item_id"].filter(is_item)).to_pylist()
        after = standing.model_copy(
            update={
                "positions": {p: max(n, standing.positions.get(p, 0)) for p, n in (standing.positions | until).items()},
                "held": held,
                "rounds": standing.rounds + 1,
                "floor": floor,
                "withdrawn": tuple(withdrawn),
            }
        )
        since = int(known.sum())
        return RoundEvents(events, rows.take(order), since, len(events) - int(aside.sum()), named, after)

    def _describe(self, table: pa.Table) -> Rows:
        users = table["user_id"].combine_chunks().dictionary_encode()
        names = users.dictionary.to_pylist()
        bar = int(self._settings.holdout_share * _SLICES)
        for name in names:
            if name not in self._held_out:
                self._held_out[name] = hash_id(f"held out {name}") % _SLICES < bar
        held_out = np.array([self._held_out[name] for name in names] or [False], np.bool_)
        return Rows(
            table["partition"].to_numpy().astype(np.int64),
            table["offset"].to_numpy(),
            table["arrived"].to_numpy(),
            held_out[users.indices.to_numpy(zero_copy_only=False)],
        )

    def _held_since(self, table: pa.Table, rows: Rows, order: NDArray[np.int64]) -> float:
        """When the newest `holdout_events` engaged events of held-out users began to arrive, epoch s.

        Half of what they did stays: they are to be predicted from something.
        """
        engaging = pa.array([action.name for action in self._vocabulary.actions if action.engaging])
        engaged = pc.is_in(table["action"], engaging).to_numpy(zero_copy_only=False)
        theirs = order[(rows.held_out & engaged)[order]]
        count = min(self._settings.holdout_events, len(theirs) // 2)
        return float(rows.arrived[theirs[-count]]) if count else float(np.nextafter(rows.arrived[order[-1]], np.inf))


def _by_partition(positions: Mapping[int, int], partition: NDArray[np.int64]) -> NDArray[np.int64]:
    """The position of each row's partition, 0 where there is none."""
    table = np.zeros(max([*positions, int(partition.max(initial=0))], default=0) + 1, np.int64)
    for number, position in positions.items():
        table[number] = position
    return table[partition]


def _columns(rows: pa.Table) -> dict[str, object]:
    numbers = ("timestamp", "arrived")
    return {
        name: rows[name].to_numpy() if name in numbers else rows[name].combine_chunks()
        for name in rows.column_names
        if name not in ("partition", "offset")
    }
