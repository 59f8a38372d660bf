"""Processes that make each fit of one trainer together: rank 0 leads, the others help.

What a round is made of lies on the disk before it begins, and helpers read it there: the state folder must be one to
all. Between the processes go a few numbers and, within a fit, gradients.
"""

from typing import Final, NamedTuple

import torch
import torch.distributed as dist
import xxhash

from pinrec.parallel import Group
from streaming.training_log import RoundEvents

_DISMISSED: Final = -1
_NOTHING: Final = 0


class Order(NamedTuple):
    """A fit to be made.

    Attributes:
        round: its number.
        since_row: the first row that is new to it.
        steps: to be made.
        step: of the learner before it.
        events: a digest of what it is made of.
    """

    round: int
    since_row: int = 0
    steps: int = 0
    step: int = 0
    events: int = 0

    @classmethod
    def of(cls, work: RoundEvents, since_row: int, steps: int, step: int) -> "Order":
        """That of a round."""
        return cls(work.after.rounds, since_row, steps, step, _digest(work))

    def is_for(self, work: RoundEvents, step: int) -> bool:
        """Whether a process would begin where the leader does, with the very same events."""
        return (self.step, self.events) == (step, _digest(work))


class Crew:
    """The processes of a group, as each of them sees it.

    All of them call each method of the leader's and of the helpers' in turn: `begin`, `idle` and `dismiss` of the one
    are what the others' `order` returns.

    Args:
        group: of any backend that sums CPU tensors (gloo), the leader its rank 0; None = a trainer that is alone. Its
            timeout must be longer than `trainer.interval_s` and than a round.
    """

    def __init__(self, group: Group | None = None) -> None:
        self.group = group
        self.rank = 0 if group is None else dist.get_rank(group)
        self.ranks = 1 if group is None else dist.get_world_size(group)

    def begin(self, order: Order) -> None:
        """Have the helpers make a fit too; returns when all are about to.

        Raises:
            ValueError: one of them does not see the round as the leader does; none makes the fit.
        """
        self._tell(order)
        if not self.all_ready(True):
            raise ValueError(
                "group: one of its processes does not see the events of this round, or the weights before it, as the "
                "leader does; give all of them the same settings and the same state.root"
            )

    def idle(self) -> None:
        """Let the helpers know that there is nothing to do, so that they do not take the leader for dead."""
        self._tell(Order(_NOTHING))

    def dismiss(self) -> None:
        """Let the helpers go."""
        self._tell(Order(_DISMISSED))

    def order(self) -> Order | None:
        """What the leader wants next; None = nothing more."""
        while True:
            order = self._tell(Order(_NOTHING))
            if order.round != _NOTHING:
                return None if order.round == _DISMISSED else order

    def all_ready(self, ready: bool) -> bool:
        """Whether every process is ready."""
        if self.group is None:
            return ready
        all_ready = torch.tensor([int(ready)])
        dist.all_reduce(all_ready, dist.ReduceOp.MIN, group=self.group)
        return bool(all_ready.item())

    def _tell(self, order: Order) -> Order:
        """The leader's order, in every process."""
        if self.group is None:
            return order
        numbers = torch.tensor(order)
        dist.broadcast(numbers, group=self.group, group_src=0)
        return Order(*numbers.tolist())


def _digest(work: RoundEvents) -> int:
    """63 bits of where the events lie in the archive, and of how they are divided."""
    digest = xxhash.xxh3_64(f"{work.since} {work.held} {len(work.events)}".encode())
    for column in (work.rows.partition, work.rows.offset):
        digest.update(column.tobytes())
    return digest.intdigest() >> 1
