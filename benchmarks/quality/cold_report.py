"""The table of cold items."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from benchmarks.quality.cold_record import ColdRun
from benchmarks.quality.settings import differences
from benchmarks.quality.words import DATA, share, table


def cold_section(runs: Sequence[ColdRun], of: Mapping[str, Any] = MappingProxyType({})) -> list[str]:
    """What becomes of items by their events in training; nothing where nothing was measured.

    Args:
        of: settings by data set, see `benchmarks.quality.settings`.
    """
    if not runs:
        return []
    return [
        "## Cold items\n",
        "Another split, by time: PinRec-MT,OC is trained on the first 70 % of a log, selected on the next tenth, and "
        "asked in the last fifth with the whole catalogue, as a replica has it: an item that appeared after training "
        "has its vector from content and hashes of its id. Where items are dated, neither lists nor targets hold what "
        "does not exist yet when a list is asked for. Items are told apart by their events in training. "
        "*Answers*: the share of the places in the lists of ten. *Recall*: the share of the targets that these lists "
        "hold. Beside each, in brackets, the same of the most popular unseen items. *Worth*, in the "
        "[town](simulator.md): the true chance of a click on a place. Taken by "
        "`python -m benchmarks.quality.cold`.\n",
        *differences(runs, of),
        *table(
            ["Data", "Events in training", "Items", "Answers", "Targets", "Recall@10", "Worth"],
            [row for run in runs for row in _rows(run)],
        ),
    ]


def _rows(run: ColdRun) -> list[list[str]]:
    name = f"{DATA.get(run.dataset, run.dataset)}, seed {run.seed}, {run.users:,} users"
    return [
        [
            name,
            label.removesuffix(" events"),
            f"{group.items:,}",
            f"{100 * group.answers:.1f} % ({100 * group.popular_answers:.1f} %)",
            f"{group.targets:,}",
            f"{share(group.recall)} ({share(group.popular_found / group.targets if group.targets else None)})",
            share(group.reward) if run.dataset == "town" else "",
        ]
        for label, group in run.groups.items()
    ]
