"""In what the settings of a measure beside the runs differ from those that the tables of models are of."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from benchmarks.quality.record import Run, SideMeasure
from benchmarks.quality.words import DATA, name_of

_MODEL: Final = "pinrec"
_USUAL: Final = "kuairand_pure"
_OF_THE_DATA: Final = ("model.content_width", "generation.default_outcomes")
Config = Mapping[str, Any]


def recipes(runs: Sequence[Run]) -> dict[str, Config]:
    """By data set, the settings of PinRec-MT,OC under disjoint users, as its runs are recorded now."""
    found = [run for run in runs if (run.protocol, run.model) == ("disjoint", _MODEL)]
    return {run.dataset: run.config.get("model", {}) for run in found}


def differences(measures: Sequence[SideMeasure], of: Mapping[str, Config]) -> list[str]:
    """A sentence on what measures were taken with other settings; none where there is none.

    Args:
        of: from `recipes`; a data set that has no runs there is held against KuaiRand-Pure's.
    """
    told = []
    for measure in measures:
        there = of.get(measure.dataset, of.get(_USUAL, {}))
        if there and (found := _differing(measure.config, there)):
            told.append(f"{DATA.get(measure.dataset, measure.dataset)}, seed {measure.seed}: {', '.join(found)}")
    if not told:
        return []
    return [f"Taken with other settings than {name_of(_MODEL)} in the tables of disjoint users: {'; '.join(told)}.\n"]


def _differing(config: Config, there: Config) -> list[str]:
    """Those of another value; one that there was not yet is off, so it differs from one that is on."""
    mine, theirs = _flat(config), _flat(there)
    found = []
    for name in dict.fromkeys([*theirs, *mine]):
        before, now = mine.get(name), theirs.get(name)
        if before != now and (before or now) and not name.startswith(_OF_THE_DATA):
            found.append(f"`{name}` {_value(before)} in place of {_value(now)}")
    return found


def _flat(config: Config, under: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in config.items():
        flat |= _flat(value, f"{under}{name}.") if isinstance(value, Mapping) else {f"{under}{name}": value}
    return flat


def _value(value: Any) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"[{', '.join(map(_value, value))}]"
    if isinstance(value, float):
        return f"{value:.10g}"
    return "none" if value is None else str(value)
