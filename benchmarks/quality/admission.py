"""Whether a baseline has reproduced its public figures: the rule by which it is admitted to a table."""

from collections.abc import Sequence
from statistics import mean
from typing import Final

from benchmarks.quality.plan import BASELINES
from benchmarks.quality.public import REPRODUCED, REPRODUCED_WITHIN, Figure
from benchmarks.quality.record import Run
from benchmarks.quality.words import DATA, NOT_RUN, name_of, percent, share

_MARK: Final = "†"


class Admission:
    """What is known of each baseline's reproductions, by runs under leave-one-out."""

    def __init__(self, runs: Sequence[Run], dataset: str | None = None) -> None:
        """Look at the figures of one data set alone, where one is named."""
        self._runs = [run for run in runs if run.protocol == "loo"]
        self._figures = [figure for figure in REPRODUCED if dataset in (None, figure.dataset)]

    def named(self, model: str, protocol: str = "disjoint") -> str:
        """The model as the page calls it, marked where one of its public figures is missed or not tried yet."""
        name = name_of(model, protocol)
        return f"{name} {_MARK}" if any(not _within(off) for _, off in self._of(model)) else name

    def legend(self, models: Sequence[str] = BASELINES) -> list[str]:
        """What the mark says of each of these models that has it, and which have nothing to reproduce."""
        marked = [f"{name_of(model, 'loo')}: {self._told(model)}" for model in models if _MARK in self.named(model)]
        if not marked:
            return []
        without = [name_of(model) for model in models if model not in {figure.model for figure in REPRODUCED}]
        free = f" No public figure to reproduce: {'; '.join(without)}." if without else ""
        return [
            f"{_MARK} A baseline is to reproduce its public figures first, HR@10 and NDCG@10 at most "
            f"{REPRODUCED_WITHIN:.0%} below ([reproductions](#public-figures-reproduced)); what is marked has not: "
            f"{'; '.join(marked)}.{free}\n"
        ]

    def rows(self) -> list[tuple[Figure, list[str]]]:
        """Each public figure with `found / here, off, near` as a table prints them."""
        rows = []
        for figure in self._figures:
            off = self._off(figure)
            if off is None:
                rows.append((figure, [NOT_RUN, "", ""]))
            else:
                hr, ndcg = figure.hr * (1 + off[0]), figure.ndcg * (1 + off[1])
                rows.append((figure, [f"{share(hr)} / {share(ndcg)}", _percents(off), "yes" if _within(off) else "no"]))
        return rows

    def _of(self, model: str) -> list[tuple[Figure, tuple[float, float] | None]]:
        return [(figure, self._off(figure)) for figure in self._figures if figure.model == model]

    def _off(self, figure: Figure) -> tuple[float, float] | None:
        """HR@10 and NDCG@10 relative to the public ones, less 1; None where it is not run."""
        of = [run.test for run in self._runs if (run.dataset, run.model) == (figure.dataset, figure.model)]
        if not of:
            return None
        return mean(t["hr@10"] for t in of) / figure.hr - 1, mean(t["ndcg@10"] for t in of) / figure.ndcg - 1

    def _told(self, model: str) -> str:
        told = []
        for figure, off in self._of(model):
            what = NOT_RUN if off is None else f"{'reproduced' if _within(off) else 'missed'}, {_percents(off)}"
            told.append(f"{DATA[figure.dataset]} {what}")
        return ", ".join(told)


def _within(off: tuple[float, float] | None) -> bool:
    return off is not None and min(off) >= -REPRODUCED_WITHIN


def _percents(off: tuple[float, float]) -> str:
    return f"{percent(off[0])} / {percent(off[1])}"
