"""As many embeddings of a user from every model under `disjoint`, on any log: each then shows as many items."""

from dataclasses import replace
from typing import Any

from benchmarks.quality.models import EMBEDDINGS, MODELS
from pinrec.budget import normalised
from pinrec.comparison import aims_of, embeddings_a_step
from pinrec.config import GenerationConfig
from pinrec.contender import PinRecRecipe
from pinrec.evaluation import outcome_shares
from pinrec.protocols import ProtocolError, Split


def embeddings_on(dataset: str, split: Split) -> int:
    """E: outcomes x offsets x steps of MT,OC, with the log's own outcomes where its settings name none.

    Raises:
        ProtocolError: there is no engagement in the log.
    """
    if dataset in EMBEDDINGS:
        return EMBEDDINGS[dataset]
    recipe = MODELS["pinrec"].config_for(dataset, "disjoint")
    generation = aimed(recipe.generation, split)
    return embeddings_a_step(generation, len(recipe.model.offsets_s)) * generation.steps


def aimed(generation: GenerationConfig, split: Split) -> GenerationConfig:
    """With a budget over the frequent outcomes of the whole log, so that folds agree, as frequent as in training.

    Raises:
        ProtocolError: one of them is not in training.
    """
    if generation.default_outcomes is not None:
        return generation
    frequent = aims_of(split.log.events, split.log.vocabulary)
    shares = outcome_shares(split.training_events, split.log.vocabulary)
    if unknown := [name for name in frequent if name not in shares]:
        raise ProtocolError(f"action: nobody who is trained on has met with {', '.join(unknown)}; bring a longer log")
    return _with(generation, default_outcomes={name: shares[name] for name in frequent})


def generating(config: Any, dataset: str, split: Split, embeddings: int) -> Any:
    """The config that makes so many embeddings a user; that of a model with one list is left as it is.

    A log without settings of its own gets its outcomes, and as many steps as it takes; those of others must agree.

    Raises:
        ValueError: no whole number of steps makes so many, or an outcome that the log does not have.
    """
    if not isinstance(config, PinRecRecipe):
        return config
    generation, offsets = aimed(config.generation, split), len(config.model.offsets_s)
    normalised(generation.default_outcomes or {}, split.log.vocabulary)
    if dataset not in EMBEDDINGS:
        generation = _with(generation, steps=max(1, embeddings // embeddings_a_step(generation, offsets)))
    if (made := embeddings_a_step(generation, offsets) * generation.steps) != embeddings:
        raise ValueError(
            f"generation: makes {made} embeddings a user, where every model is to make {embeddings}; change its steps, "
            "its default_outcomes or model.offsets_s"
        )
    return replace(config, generation=generation)


def _with(generation: GenerationConfig, **settings: Any) -> GenerationConfig:
    return GenerationConfig.model_validate(generation.model_dump() | settings)
