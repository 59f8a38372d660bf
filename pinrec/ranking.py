"""The ranking head: how likely an item, once shown, meets with each engaging action.

It stands on the backbone that retrieves and reads the keys and values that retrieval has cached. A candidate is a
token like any other but for its action, which is not known yet; candidates see the history, not each other (method:
UniPinRec, arXiv 2606.00422).

Shapes: B windows, L positions, C candidates of a window, D width, O engaging actions, X exposures.
"""

from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from pinrec.config import ModelConfig, Vocabulary
from pinrec.dataset import EventColumns
from pinrec.windows import Indices, Windows

if TYPE_CHECKING:
    from pinrec.backbone import KVCache
    from pinrec.model import PinRecModel

EXPOSURE_S: Final = 1_800.0  # events on one item that lie no further apart are of one exposure


class RankingHead(nn.Module):
    """An MLP from a candidate's state to log-odds, and the embedding that stands for the action of what none met yet.

    Attributes:
        unknown: [D].
    """

    def __init__(self, config: ModelConfig, vocabulary: Vocabulary) -> None:
        super().__init__()
        self.unknown = nn.Parameter(torch.zeros(config.width))
        self.hidden = nn.Linear(config.width, 2 * config.width)
        self.out = nn.Linear(2 * config.width, len(vocabulary.outcomes))

    def forward(self, h_BCD: Tensor) -> Tensor:
        """Log-odds [B, C, O], in the order of `Vocabulary.outcomes`."""
        logit_BCO: Tensor = self.out(F.gelu(self.hidden(h_BCD)))
        return logit_BCO


class Exposures:
    """Each time that a user was shown an item, and which engaging actions it met with; positions are of `Windows`.

    An exposure begins with the first event on the item, whatever the action: an impression, or what followed from one
    that was not logged. Later events on it belong to the same exposure while no pause is longer than EXPOSURE_S.

    Attributes:
        start: int64[X], ascending, the position of its first event.
        seen: int64[X], the position at which the events of its very moment begin; all that was known came before.
        met: bool[X, O].
        surface, timestamp, previous: int64[X] and float64[X], of `start`, and the time of the event before `seen`.
    """

    def __init__(self, windows: Windows, events: EventColumns, vocabulary: Vocabulary) -> None:
        user, timestamp = windows.user, windows.timestamp
        shown = np.flatnonzero(~events.is_query[windows.order])
        hashes = events.item_hash[windows.order]
        by_item = shown[np.lexsort((hashes[shown], user[shown]))]
        opens = np.ones(len(by_item), np.bool_)
        earlier, later = by_item[:-1], by_item[1:]
        opens[1:] = (user[later] != user[earlier]) | (hashes[later] != hashes[earlier])
        opens[1:] |= timestamp[later] - timestamp[earlier] > EXPOSURE_S

        engaging = np.array([action.engaging for action in vocabulary.actions])
        outcome = np.where(engaging, np.cumsum(engaging) - 1, -1)[windows.action[by_item]]
        met = np.zeros((int(opens.sum()), len(vocabulary.outcomes)), np.bool_)
        met[(np.cumsum(opens) - 1)[outcome >= 0], outcome[outcome >= 0]] = True

        moves = np.ones(len(user), np.bool_)
        moves[1:] = (user[1:] != user[:-1]) | (timestamp[1:] != timestamp[:-1])
        moment = np.maximum.accumulate(np.where(moves, np.arange(len(user)), 0))
        start = by_item[opens]
        ascending = np.argsort(start)
        self.start: Indices = start[ascending]
        self.met: NDArray[np.bool_] = met[ascending]
        self.seen: Indices = moment[self.start]
        self.surface: Indices = events.surface[windows.order][self.start].astype(np.int64)
        self.timestamp = timestamp[self.start]
        self.previous = timestamp[self.seen - 1]

    def within(self, lo: Indices, hi: Indices, since: Indices) -> tuple[Indices, NDArray[np.bool_]]:
        """The exposures [B, C] that begin in [since, hi), and which are real: the others fill up a row.

        Those of which the window [lo, hi) holds no history are not among the real.
        """
        first, last = np.searchsorted(self.start, since), np.searchsorted(self.start, hi)
        which_BC = first[:, None] + np.arange(int((last - first).max(initial=0)))
        real_BC = which_BC < last[:, None]
        which_BC = np.minimum(which_BC, len(self.start) - 1)
        return which_BC, real_BC & (self.seen[which_BC] > lo[:, None])


def ranking_loss(
    model: "PinRecModel",
    exposures: Exposures,
    lo: Indices,
    hi: Indices,
    since: Indices,
    item_BLD: Tensor,
    cache: "KVCache",
    total: int,
) -> Tensor:
    """Negative log-likelihood of what exposures met with, summed over actions and over exposures, by `total`.

    Args:
        lo, hi: the windows, as positions.
        since: where in each window the exposures begin. The caller draws it: what stands early sees little, and half
            the cost is saved. One draw for all windows keeps the rows alike in length.
        item_BLD: vectors of the items in them.
        cache: of the windows, with gradients: what retrieval learns from is not encoded again.
        total: what the sum is divided by: the number of exposures in the whole batch.
    """
    which_BC, real_BC = exposures.within(lo, hi, since)
    if not real_BC.any():
        return torch.zeros(())
    at_BC = np.clip(exposures.start[which_BC] - lo[:, None], 0, item_BLD.shape[1] - 1)
    length_BC = np.clip(exposures.seen[which_BC] - lo[:, None], 0, (hi - lo)[:, None])
    logit_BCO = model.rank(
        item_BLD[torch.arange(len(lo))[:, None], torch.as_tensor(at_BC)],
        torch.as_tensor(exposures.surface[which_BC]),
        torch.as_tensor(exposures.timestamp[which_BC]),
        torch.as_tensor(exposures.previous[which_BC]),
        cache,
        torch.as_tensor(length_BC),
    )
    met_NO = torch.as_tensor(exposures.met[which_BC[real_BC]]).float()
    lost = F.binary_cross_entropy_with_logits(
        logit_BCO.flatten(0, 1)[torch.as_tensor(np.flatnonzero(real_BC))], met_NO, reduction="sum"
    )
    return lost / total
