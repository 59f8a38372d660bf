"""What can be run, by name: where a model is found, its settings by data set and protocol, and how it is selected.

Settings are merged from the general to the particular: those under "", the protocol ("loo"), the data set ("ml1m"),
and both ("ml1m loo"). The config's own defaults hold for the rest.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from pydantic import TypeAdapter

from pinrec.config import Frozen, ModelConfig

if TYPE_CHECKING:  # torch comes with them, and a process must be set up before (`process`)
    from pinrec.baselines.contender import Contender
    from pinrec.protocols import Split

Settings = Mapping[str, Any]
EMBEDDINGS: Final = {"kuairand_pure": 16, "ml1m": 12}
"""How many embeddings every model generates for a user under `disjoint`: outcomes x offsets x steps of MT,OC."""


class Selection(Frozen):
    """How the epoch is chosen whose weights are tested; see `pinrec.selection.fit_selected`."""

    metric: str
    every: int = 1
    patience: int | None = None
    embeddings: int = 1


@dataclass(frozen=True)
class Entry:
    """One model.

    Attributes:
        contender: "module:class", made of (split, config, seed); imported when it is asked for.
        config: "module:class" of its config, a pydantic model or a dataclass of them.
        settings, selection: by data set and protocol, see above.
    """

    contender: str
    config: str
    settings: Mapping[str, Settings] = field(default_factory=dict)
    selection: Mapping[str, Settings] = field(default_factory=dict)

    def but(self, **settings: Any) -> "Entry":
        """The same with other settings, whatever the data."""
        return Entry(
            self.contender, self.config, {**self.settings, "always": merged(self.settings, ("always",), settings)},
            self.selection,
        )  # fmt: skip

    def config_for(self, dataset: str, protocol: str, epochs: int | None = None) -> Any:
        """The config; `epochs`, where given, replaces its own.

        Raises:
            ValueError: a setting that it does not know, or a value out of bounds.
        """
        kind = _named(self.config)
        last = {} if epochs is None or "epochs" not in _fields(kind) else {"epochs": epochs}
        return TypeAdapter(kind).validate_python(merged(self.settings, (*keys(dataset, protocol), "always"), last))

    def selection_for(self, dataset: str, protocol: str) -> Selection:
        """How its epoch is chosen."""
        default = {"metric": "ndcg@10"}
        if protocol == "disjoint":
            embeddings = EMBEDDINGS.get(dataset, 16)
            default = {"metric": "unordered@10", "embeddings": embeddings}
        return Selection(**default | merged(self.selection, keys(dataset, protocol)))

    def make(self, split: "Split", config: Any, seed: int, device: str) -> "Contender":
        """The contender; a device other than the CPU is asked for by keyword."""
        elsewhere = {} if device == "cpu" else {"device": device}
        made: Contender = _named(self.contender)(split, config, seed, **elsewhere)
        return made


def merged(by_key: Mapping[str, Settings], which: tuple[str, ...], last: Settings | None = None) -> dict[str, Any]:
    """The settings under these keys, later ones over earlier ones, and `last` over all; nested ones key by key."""
    found: dict[str, Any] = {}
    for settings in (*(by_key.get(key, {}) for key in which), last or {}):
        found = _over(found, settings)
    return found


def keys(dataset: str, protocol: str) -> tuple[str, ...]:
    """From the general to the particular."""
    return ("", protocol, dataset, f"{dataset} {protocol}")


def catalogue_config(config: Any) -> ModelConfig:
    """Sizes of the catalogue's features: PinRec's own, or the defaults for models that bring no such config."""
    model = getattr(config, "model", None)
    return model if isinstance(model, ModelConfig) else ModelConfig()


def plain(config: Any) -> dict[str, Any]:
    """The config as JSON holds it."""
    content: dict[str, Any] = TypeAdapter(type(config)).dump_python(config, mode="json")
    return content


def _over(under: Settings, over: Settings) -> dict[str, Any]:
    nested = {
        k: _over(under[k], v) for k, v in over.items() if isinstance(v, Mapping) and isinstance(under.get(k), dict)
    }
    return {**under, **over, **nested}


def _fields(kind: Any) -> Mapping[str, Any]:
    fields: Mapping[str, Any] = getattr(kind, "model_fields", None) or kind.__dataclass_fields__
    return fields


def _named(path: str) -> Any:
    module, _, name = path.partition(":")
    return getattr(import_module(module), name)


_PINREC: Final = Entry(
    "pinrec.contender:PinRec",
    "pinrec.contender:PinRecRecipe",
    settings={"": {"model": {}, "training": {}, "generation": {"mode": "multi_token"}, "epochs": 40}},
)

MODELS: Final[dict[str, Entry]] = {
    "popular": Entry("pinrec.baselines.popular:Popular", "pinrec.baselines.popular:PopularConfig"),
    "popular_recent": Entry(
        "pinrec.baselines.popular:Popular",
        "pinrec.baselines.popular:PopularConfig",
        settings={"": {"recent_days": 3.0}},
    ),
    "two_tower": Entry("pinrec.baselines.two_tower:TwoTower", "pinrec.baselines.two_tower:TwoTowerConfig"),
    "sasrec_bce": Entry(
        "pinrec.baselines.sasrec:SASRec", "pinrec.baselines.sasrec:SASRecConfig", settings={"": {"loss": "bce"}}
    ),
    "sasrec": Entry("pinrec.baselines.sasrec:SASRec", "pinrec.baselines.sasrec:SASRecConfig"),
    "pinnerformer": Entry(
        "pinrec.baselines.pinnerformer:PinnerFormer", "pinrec.baselines.pinnerformer:PinnerFormerConfig"
    ),
    "hstu": Entry("pinrec.baselines.hstu:HSTU", "pinrec.baselines.hstu:HSTUConfig"),
    "tiger": Entry("pinrec.baselines.tiger:Tiger", "pinrec.baselines.tiger:TigerConfig"),
    "pinrec_uc": _PINREC.but(generation={"mode": "unconditioned"}),
    "pinrec_oc": _PINREC.but(generation={"mode": "outcome"}),
    "pinrec": _PINREC,
}
