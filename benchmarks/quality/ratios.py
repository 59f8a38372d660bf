"""Figures that are a sum over users over another sum over users, and what chance in the users does to them."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from pinrec.measures import Difference

Values = NDArray[np.float64]
DRAWS: Final = 2_000
_BLOCK: Final = 100
_DIGITS: Final = 9


class Ratio:
    """One figure: its value, and its values on draws of the users, float64[draws]; draws are the same for all."""

    def __init__(self, value: float, drawn: Values) -> None:
        self.value, self.drawn = value, drawn

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % percentile interval."""
        low, high = np.nanquantile(self.drawn, (0.025, 0.975))
        return float(low), float(high)

    def less(self, before: "Ratio") -> Difference:
        """This less another, paired."""
        low, high = np.nanquantile(self.drawn - before.drawn, (0.025, 0.975))
        return Difference(before.value, self.value, float(low), float(high))


def ratios(numerator_UC: Values, denominator_UC: Values, draws: int = DRAWS, seed: int = 0) -> list[Ratio | None]:  # noqa: N803
    """C figures, sums over U users of numerators over sums of denominators; None where the denominators are all 0.

    A mean over the users that have a figure is one with 1 as their denominators and 0 as those of the others. Users
    are drawn with replacement, as in `paired_bootstrap`.
    """
    users, columns = numerator_UC.shape
    both = np.concatenate((numerator_UC, denominator_UC), axis=1, dtype=np.float64)
    rng, drawn = np.random.default_rng(seed), np.empty((draws, 2 * columns))
    for at in range(0, draws, _BLOCK):
        size = min(_BLOCK, draws - at)
        picked = rng.integers(0, users, (size, users)) + users * np.arange(size)[:, None]
        times = np.bincount(picked.ravel(), minlength=size * users).reshape(size, users)
        drawn[at : at + size] = times.astype(np.float64) @ both
    with np.errstate(invalid="ignore", divide="ignore"):
        value = numerator_UC.sum(0) / denominator_UC.sum(0)
        # Processors add up in orders of their own: what is equal but for that must stay equal, as ranks are taken.
        sampled = np.round(drawn[:, :columns] / drawn[:, columns:], _DIGITS)
    return [Ratio(float(v), sampled[:, c]) if np.isfinite(v) else None for c, v in enumerate(value)]


def spearman(drawn_DP: Values) -> Values:  # noqa: N803
    """Rank correlation of P values in a row with their places, for each of D rows; 0 where they are all equal."""
    less = (drawn_DP[:, :, None] > drawn_DP[:, None, :]).sum(2)
    equal = (drawn_DP[:, :, None] == drawn_DP[:, None, :]).sum(2)
    rank = less + (equal - 1) / 2
    rank -= rank.mean(1, keepdims=True)
    place = np.arange(drawn_DP.shape[1]) - (drawn_DP.shape[1] - 1) / 2
    spread = np.sqrt((rank**2).sum(1) * (place**2).sum())
    correlation: Values = np.divide(rank @ place, spread, out=np.zeros(len(rank)), where=spread > 0)
    return correlation
