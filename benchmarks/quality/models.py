"""What can be run, by name: where a model is found, its settings by data set and protocol, and how it is selected.

Settings are merged from the general to the particular: those under "", the protocol ("loo"), the data set ("ml1m"),
and both ("ml1m loo"). The config's own defaults hold for the rest.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from pydantic import TypeAdapter

from pinrec.config import Frozen, ModelConfig

if TYPE_CHECKING:  # torch comes with them, and a process must be set up before (`process`)
    from pinrec.baselines.contender import Contender
    from pinrec.protocols import Split

Settings = Mapping[str, Any]
EMBEDDINGS: Final = {"kuairand_pure": 16, "ml1m": 12}
"""How many embeddings every model generates for a user under `disjoint`: outcomes x offsets x steps of MT,OC. On any
other log they are counted once it is read (`equal`)."""


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
        recipe: begins the names of its recipes in `pinrec.baselines.presets`, which hold where there is one for the
            data set under leave-one-out.
        weights_of: the model whose trained weights it takes instead of training: it differs in generation alone.
    """

    contender: str
    config: str
    settings: Mapping[str, Settings] = field(default_factory=dict)
    selection: Mapping[str, Settings] = field(default_factory=dict)
    recipe: str | None = None
    weights_of: str | None = None

    def but(self, settings: Mapping[str, Settings]) -> "Entry":
        """The same with other settings, by the same keys."""
        both = {key: _over(self.settings.get(key, {}), settings.get(key, {})) for key in {**self.settings, **settings}}
        return replace(self, settings=both)

    def config_for(self, dataset: str, protocol: str, epochs: int | None = None) -> Any:
        """The config; `epochs`, where given, replaces its own.

        Raises:
            ValueError: a setting that it does not know, or a value out of bounds.
        """
        kind = _named(self.config)
        last = {} if epochs is None or "epochs" not in _fields(kind) else {"epochs": epochs}
        if self.recipe is not None and protocol == "loo":
            recipes = _named("pinrec.baselines.presets:PUBLISHED")
            for name, published in recipes.items():
                if name.startswith(self.recipe) and published.data == dataset:
                    return published.config.model_copy(update=last)
        return TypeAdapter(kind).validate_python(_over(merged(self.settings, keys(dataset, protocol)), last))

    def config_of(self, recorded: Settings) -> Any:
        """The config that a JSON holds; settings that came later have their defaults.

        A recipe's former ones count for nothing.
        """
        return TypeAdapter(_named(self.config)).validate_python(recorded)

    def selection_for(self, dataset: str, protocol: str, embeddings: int = 1) -> Selection:
        """How its epoch is chosen; with so many embeddings a user under `disjoint` on a log not in `EMBEDDINGS`."""
        default: dict[str, Any] = {"metric": "ndcg@10"}
        if protocol == "disjoint":
            default = {"embeddings": EMBEDDINGS.get(dataset, embeddings)}
        chosen = default | merged(self.selection, keys(dataset, protocol))
        return Selection(**{"metric": f"equal@{10 * chosen.get('embeddings', 1)}"} | chosen)

    def make(self, split: "Split", config: Any, seed: int) -> "Contender":
        """The contender, on torch's default device."""
        made: Contender = _named(self.contender)(split, config, seed)
        return made


def merged(by_key: Mapping[str, Settings], which: tuple[str, ...]) -> dict[str, Any]:
    """The settings under these keys, later ones over earlier ones, nested ones key by key."""
    found: dict[str, Any] = {}
    for key in which:
        found = _over(found, by_key.get(key, {}))
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


_DAY_S: Final = 86_400.0
# The outcomes of most of the targets and the two that differ most from them, as frequent as they are in training.
_KUAIRAND_OUTCOMES: Final = {"click": 0.57, "long_view": 0.39, "profile_enter": 0.02, "like": 0.02}
_RATINGS: Final = {"like": 0.58, "neutral": 0.26, "dislike": 0.16}
# What ML-1M's runs under leave-one-out were taken with.
_EARLIER: Final = {"tower": "mlp", "bag_width": 32, "bag_gain": 0.0, "local_window": 0}

_PINREC: Final = Entry(
    "pinrec.contender:PinRec",
    "pinrec.contender:PinRecRecipe",
    settings={
        "": {"model": {"stride": 1}, "training": {}, "generation": {"mode": "multi_token"}, "epochs": 40},
        "loo": {
            "model": {"history": 200, "dropout": 0.2},
            "training": {
                "window": 200, "batch_users": 32, "learning_rate": 1e-3, "softmax": "exact", "averaging": 0.998,
            },
            "generation": {"mode": "unconditioned", "steps": 1},
        },
        "ml1m loo": {"model": {"layers": 3} | _EARLIER, "epochs": 45},
        # Nine reviews a user, sixteen an item: an item begins as its words and categories, and reviews tell it apart as
        # far as they go. The last item is what is predicted at first. An ASIN begins with when it was given, and those
        # of products that were listed together are neighbours.
        "amazon_beauty loo": {
            "model": {
                "width": 128, "id_width": 128, "history": 50, "dropout": 0.3, "inner_dropout": 0.3,
                "hash_buckets": 65_536, "bag_buckets": 32_768, "bag_size": 20, "bag_width": 128,
                "least_temperature": 0.07,
            },
            "training": {
                "window": 50, "batch_users": 64, "table_rate": 5.0, "id_decay": 5.0, "item_mask": 0.1,
                "averaging": 0.99,
            },
            "beginnings": {"asin": (4, 5, 7)},
            "epochs": 15,
        },
        "disjoint": {
            # What is to be found lies days ahead: half of KuaiRand's targets more than two.
            "model": {"history": 128, "dropout": 0.2, "max_offset_s": 14 * _DAY_S, "offsets_s": (_DAY_S, 14 * _DAY_S)},
            "training": {
                "window": 64, "batch_users": 32, "learning_rate": 2e-3, "uniform_negatives": 1024,
                "id_decay": 3.0, "later_targets": 2, "averaging": 0.99,
            },
            "generation": {"steps": 2},
            "epochs": 8,
        },
        # Four outcomes, two offsets, two steps: 16.
        "kuairand_pure disjoint": {"generation": {"default_outcomes": _KUAIRAND_OUTCOMES}},
        # Three outcomes in turn, two offsets, six steps: 12. Half of the targets come within 20 minutes.
        "ml1m disjoint": {
            "model": {"offsets_s": (100.0, _DAY_S)},
            "generation": {"default_outcomes": _RATINGS, "steps": 6, "in_turn": True},
        },
    },
    selection={"loo": {"every": 5}, "disjoint": {"every": 4}},
)  # fmt: skip
_PUBLISHED: Final = {"ml1m": {"every": 2, "patience": 10}, "amazon_beauty": {"every": 5, "patience": 10}}


def _every(epochs: int, patience: int | None = None) -> dict[str, Settings]:
    return {"disjoint": {"every": epochs, "patience": patience}}


def _generating(
    steps: int, outcomes: Mapping[str, float], offsets_s: tuple[float, ...], in_turn: bool = False
) -> Entry:
    """PinRec with other embeddings on KuaiRand; its own outcomes are replaced, not merged with."""
    generation = {"steps": steps, "default_outcomes": outcomes, "in_turn": in_turn}
    settings = {"model": {"offsets_s": offsets_s}, "generation": generation}
    return replace(_PINREC, settings={**_PINREC.settings, "kuairand_pure disjoint": settings}, weights_of="pinrec")


MODELS: Final[dict[str, Entry]] = {
    "popular": Entry("pinrec.baselines.popular:Popular", "pinrec.baselines.popular:PopularConfig"),
    "popular_recent": Entry(
        "pinrec.baselines.popular:Popular", "pinrec.baselines.popular:PopularConfig", settings={"": {"kind": "recent"}}
    ),
    "two_tower": Entry(
        "pinrec.baselines.two_tower:TwoTower", "pinrec.baselines.two_tower:TwoTowerConfig", selection=_every(10)
    ),
    "sasrec_bce": Entry(
        "pinrec.baselines.sasrec:SASRec",
        "pinrec.baselines.sasrec:SASRecConfig",
        settings={"": {"loss": "bce"}, "disjoint": {"epochs": 60, "width": 64, "dropout": 0.3}},
        selection=_PUBLISHED | _every(10, 2),
        recipe="sasrec-bce",
    ),
    "sasrec": Entry(
        "pinrec.baselines.sasrec:SASRec",
        "pinrec.baselines.sasrec:SASRecConfig",
        settings={"": {"loss": "softmax"}, "disjoint": {"epochs": 18, "width": 64, "dropout": 0.3}},
        selection=_PUBLISHED | _every(3, 2),
        recipe="sasrec-softmax",
    ),
    "pinnerformer": Entry(
        "pinrec.baselines.pinnerformer:PinnerFormer",
        "pinrec.baselines.pinnerformer:PinnerFormerConfig",
        settings={"disjoint": {"epochs": 12, "max_length": 128}},
        selection=_every(4),
    ),
    "hstu": Entry(
        "pinrec.baselines.hstu:HSTU",
        "pinrec.baselines.hstu:HSTUConfig",
        settings={"disjoint": {"epochs": 36, "width": 64, "max_length": 128, "negatives": 1024}},
        selection=_PUBLISHED | _every(6, 2),
        recipe="hstu",
    ),
    "tiger": Entry(
        "pinrec.baselines.tiger:Tiger",
        "pinrec.baselines.tiger:TigerConfig",
        settings={
            "disjoint": {
                "width": 64,
                "layers": 3,
                "heads": 2,
                "hidden": 256,
                "history": 30,
                "epochs": 20,
                "learning_rate": 2e-3,
            }
        },
        selection=_PUBLISHED | _every(10),
    ),
    "pinrec_uc": _PINREC.but(
        {
            "": {"generation": {"mode": "unconditioned"}},
            "kuairand_pure disjoint": {"generation": {"steps": 16}},
            "ml1m disjoint": {"generation": {"steps": 12, "in_turn": False}},
        }
    ),
    "pinrec_oc": _PINREC.but(
        {
            "": {"generation": {"mode": "outcome"}},
            "disjoint": {"generation": {"steps": 4}},
            "ml1m disjoint": {"generation": {"steps": 12}},
        }
    ),
    "pinrec": _PINREC,
    "no_multi_hash": _PINREC.but({"": {"model": {"hash_tables": 1}}}),
    "no_content": _PINREC.but({"": {"without": ["content"]}}),
    # Nothing draws an ID embedding to where features would put the item, as there are none.
    "ids_alone": _PINREC.but({"": {"without": ["content"]}, "disjoint": {"training": {"id_decay": 0.0}}}),
    "no_time": _PINREC.but({"": {"without": ["time"]}}),
    "no_logq": _PINREC.but({"": {"training": {"log_q": False}}}),
    "in_batch_only": _PINREC.but({"disjoint": {"training": {"uniform_negatives": 0}}}),
    "feed_relaxation": _PINREC.but({"": {"session_gap_s": 600.0}}),
    "impression_negatives": _PINREC.but({"": {"training": {"fine_tune_share": 0.5}}}),
    # Sixteen embeddings of the same weights, so many in each step.
    "e1": _generating(16, {"click": 1.0}, (_DAY_S,)),
    "e1_in_turn": _generating(16, _KUAIRAND_OUTCOMES, (_DAY_S,), in_turn=True),
    "e4": _generating(4, _KUAIRAND_OUTCOMES, (_DAY_S,)),
    "e16": _generating(1, _KUAIRAND_OUTCOMES, (0.5 * _DAY_S, _DAY_S, 5 * _DAY_S, 10 * _DAY_S)),
}
"""Ablations are `_PINREC.but(...)` under a name of their own."""
