"""The catalogue of each round: what the items topic says or, where that is empty, what the events name."""

import logging
from collections.abc import Mapping, Sequence

from pinrec.config import ModelConfig
from pinrec.items import Catalogue, Item
from streaming.catalogue import CatalogueView
from streaming.checkpoint import TrainerFolder
from streaming.config import KafkaSettings

log = logging.getLogger(__name__)


class TrainingCatalogue:
    """Makes only the rows that changed since the last round that was begun, and keeps the others in their order.

    That round's catalogue is in the trainer's folder, so a restart comes to the same rows in the same order.
    """

    def __init__(self, kafka: KafkaSettings, folder: TrainerFolder, config: ModelConfig) -> None:
        self._kafka, self._folder, self._config = kafka, folder, config
        self._view: CatalogueView | None = None
        self._made: tuple[Catalogue, Mapping[str, Item]] | None = None
        self.ruled = False
        """Whether the items topic rules: the catalogue may change though nobody did anything."""

    def update(self) -> None:
        """Take in what the items topic says now; while Kafka is down the catalogue stays as it was."""
        try:
            if self._view is None:
                self._view = CatalogueView(self._kafka, self._config.content_width)
            self._view.update()
        except (OSError, TimeoutError) as error:
            log.warning("the catalogue is not up to date: %s", error)

    def make(
        self, named: Sequence[str], published: tuple[Catalogue, dict[int, int]] | None
    ) -> tuple[Catalogue, dict[int, int]]:
        """The catalogue of a round that begins now, and the positions of the items topic that it is as of.

        Args:
            named: items that the events name.
            published: what stands in where Kafka has not answered since this process started.
        """
        begun = self._folder.catalogue(self._config)
        answered = self._view is not None and self._view.complete
        if not answered and begun is not None:
            return begun, self._folder.items(self._config)
        if not answered and published is not None:
            return published
        self.ruled = bool(answered and self._view is not None and self._view.items)
        before = self._made[1] if self._made is not None and self._made[0] is begun else {}
        if self.ruled and self._view is not None:
            items = dict(self._view.items)
        else:
            items = {name: before.get(name) or Item(name) for name in named}
        changed = [name for name, item in items.items() if before.get(name) is not item]
        as_of = dict(self._view.positions) if self.ruled and self._view else {}
        if begun is not None and not changed and len(items) == len(begun):
            return begun, as_of
        made = Catalogue.following(begun, items, changed, self._config)
        if begun is not None and made.same_as(begun):
            made = begun
        self._made = (made, items)
        return made, as_of
