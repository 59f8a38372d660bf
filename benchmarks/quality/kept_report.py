"""The table of what keys and values are kept in."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from benchmarks.quality.kept_record import KeptRun
from benchmarks.quality.settings import differences
from benchmarks.quality.words import DATA, share, table


def kept_section(runs: Sequence[KeptRun], of: Mapping[str, Any] = MappingProxyType({})) -> list[str]:
    """Recall by type; nothing where nothing was measured.

    Args:
        of: settings by data set, see `benchmarks.quality.settings`.
    """
    if not runs:
        return []
    return [
        "## Keys and values in fewer bits\n",
        "A replica keeps users' keys and values in `serving.states_dtype`, and rounds those that it computes anew "
        "alike. PinRec-MT,OC, trained, selected and asked on the split by time of cold items; lists are made with keys "
        "and values of each type by the same weights. *Same*: share of the places whose item is in the list with "
        "float32 too. The interval is that of the difference in recall, paired, by a bootstrap over users. Taken by "
        "`python -m benchmarks.quality.kept`.\n",
        *differences(runs, of),
        *table(
            ["Data", "Type", "Recall@10", "Against float32, 95 %", "Same"], [row for run in runs for row in _rows(run)]
        ),
    ]


def _rows(run: KeptRun) -> list[list[str]]:
    name = f"{DATA.get(run.dataset, run.dataset)}, seed {run.seed}, {run.users:,} users"
    return [
        [
            name,
            label,
            share(kept.recall),
            "" if kept.interval is None else f"{kept.interval[0]:+.4f} to {kept.interval[1]:+.4f}",
            f"{100 * kept.same:.1f} %",
        ]
        for label, kept in run.types.items()
    ]
