"""The simulated town on its opening day, and the model that was trained on its past: what every life begins with."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final

import numpy as np

from pinrec.config import GenerationConfig, ModelConfig, TrainingConfig, Vocabulary
from pinrec.dataset import EventColumns
from pinrec.hashing import hash_id
from pinrec.items import Catalogue, Item
from pinrec.training import Learner
from streaming.schema import ItemUpdate, UserEvent
from streaming.simulator import Town, TownConfig

OPENS_AT: Final = 1_760_000_000.0


@dataclass(frozen=True)
class Life:
    """How the town lives, and what recommends to it.

    Attributes:
        days: of closed loop.
        sessions: that begin in a minute, mean.
    """

    town: TownConfig = field(
        default_factory=lambda: TownConfig(
            inhabitants=1_000, items=1_000, past_days=14, past_events=100_000, new_items_per_minute=1
        )
    )
    days: float = 2.0
    sessions: float = 1.0
    model: ModelConfig = field(
        default_factory=lambda: ModelConfig(
            width=48, heads=2, history=128, stride=32, content_width=32, hash_buckets=4_096
        )
    )
    training: TrainingConfig = field(default_factory=lambda: TrainingConfig(initial_steps=500, averaging=0.95))
    generation: GenerationConfig = field(default_factory=lambda: GenerationConfig(steps=1))


class Opening:
    """The town on its opening day, and a model that was trained on its past: what every life of a seed begins with."""

    def __init__(self, life: Life, seed: int) -> None:
        self.life, self.seed, self.vocabulary = life, seed, Vocabulary()
        self.town = Town(life.town.model_copy(update={"seed": seed}), OPENS_AT)
        self.items = {update.item_id: item_of(update) for update in self.town.items()}
        # Searches are left out: nobody searches in the closed loop.
        self.past = self.columns([event for event in self.town.past() if event.item_type == "item"])

    @cached_property
    def learner(self) -> Learner:
        """Trained on the past."""
        life = self.life
        training = life.training.model_copy(update={"seed": self.seed})
        learner = Learner(life.model, self.vocabulary, training, life.generation.mode)
        learner.fit(self.past, self.catalogue, training.initial_steps)
        return learner

    @cached_property
    def catalogue(self) -> Catalogue:
        """What can be seen."""
        return Catalogue.of(list(self.items.values()), self.life.model)

    def columns(self, events: Sequence[UserEvent]) -> EventColumns:
        """The events, in their order; users are numbered as the town does."""
        number, n = self._number, len(events)
        actions, surfaces = self.vocabulary.action_index, self.vocabulary.surface_index
        timestamp = np.array([event.timestamp for event in events], np.float64)
        return EventColumns(
            user_ids=self.town.user_ids,
            user=np.array([number[event.user_id] for event in events], np.int32),
            item_hash=np.fromiter((hash_id(event.item_id or "") for event in events), np.uint64, n),
            is_query=np.zeros(n, np.bool_),
            queries=[],
            query=np.full(n, -1, np.int32),
            action=np.array([actions[event.action] for event in events], np.uint16),
            surface=np.array([surfaces[event.surface] for event in events], np.uint16),
            timestamp=timestamp,
            feed=np.full(n, -1),
            arrived=timestamp,
        )

    @cached_property
    def _number(self) -> dict[str, int]:
        return {user_id: number for number, user_id in enumerate(self.town.user_ids)}


def item_of(update: ItemUpdate) -> Item:
    """The item that a message announces."""
    return Item(
        update.item_id,
        update.title,
        update.categories,
        update.embedding,
        update.created_at or 0.0,
        update.author,
        update.numeric,
    )
