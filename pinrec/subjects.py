"""Everything events are about, as inputs of the item tower: catalogue items, items outside it, queries."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pinrec.config import ModelConfig
from pinrec.dataset import EventColumns
from pinrec.items import Catalogue, feature_bag, query_bag
from pinrec.model import PinRecModel, as_int64


class Subjects:
    """U subjects: first the N items of the catalogue, then items known by their id alone, then queries.

    Attributes:
        of_event: int64[n], each event's subject.
        items: how many of the subjects are items.
        created: float64[U], epoch seconds before which nobody could meet a subject; 0 where that is not known.
    """

    def __init__(self, events: EventColumns, catalogue: Catalogue, config: ModelConfig) -> None:
        rows = catalogue.rows(events.item_hash)
        outside = (rows < 0) & ~events.is_query
        unknown, codes = np.unique(events.item_hash[outside], return_inverse=True)
        self.of_event: NDArray[np.int64] = rows
        self.of_event[outside] = len(catalogue) + codes
        self.items = len(catalogue) + len(unknown)
        self.of_event[events.is_query] = self.items + events.query[events.is_query]

        bags = np.tile(feature_bag((), config), (self.items + len(events.queries), 1))
        bags[: len(catalogue)] = catalogue.bags
        for row, text in enumerate(events.queries, self.items):
            bags[row] = query_bag(text, config)
        self.hashes: NDArray[np.uint64] = np.concatenate((catalogue.hashes, unknown))
        self.created: NDArray[np.float64] = np.zeros(len(bags))
        self.created[: len(catalogue)] = catalogue.created_at
        self._hash = as_int64(self.hashes)
        self._bag = torch.as_tensor(bags)
        self._content = torch.zeros(self.items, config.content_width)
        self._content[: len(catalogue)] = torch.as_tensor(catalogue.content)
        self._has_content = torch.zeros(self.items, dtype=torch.bool)
        self._has_content[: len(catalogue)] = torch.as_tensor(catalogue.has_content)

    def vectors(self, model: PinRecModel, subjects: NDArray[np.int64]) -> Tensor:
        """Vectors of ascending `subjects` [n], float32[n, D]."""
        cut = int(np.searchsorted(subjects, self.items))
        items, queries = torch.as_tensor(subjects[:cut]), torch.as_tensor(subjects[cut:])
        vectors = model.item_vectors(
            self._hash[items], self._bag[items], self._content[items], self._has_content[items]
        )
        return torch.cat((vectors, model.query_vectors(self._bag[queries]))) if cut < len(subjects) else vectors
