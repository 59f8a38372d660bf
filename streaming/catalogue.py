"""The catalogue as the items topic tells it: the newest state of each item, deletions applied."""

import logging
import time

from pinrec.items import Item
from streaming.config import KafkaSettings
from streaming.items_topic import ItemRecord, ItemsTopic

log = logging.getLogger(__name__)

_POLL_S = 0.2


class CatalogueView:
    """Reads `pinrec.items` from its beginning and keeps up when asked to. One thread at a time.

    Args:
        kafka: where.
        content_width: an embedding of another length is left out, and said so; the item stays.

    Attributes:
        items: by item id.
        positions: of the topic, by partition: `items` is what it holds up to there.
        complete: the end of the topic was reached once; before that, items may be missing.

    Raises:
        KafkaUnreachableError: no broker answered.
    """

    def __init__(self, kafka: KafkaSettings, content_width: int) -> None:
        self._content_width = content_width
        self._topic = ItemsTopic(kafka, "pinrec-catalogue")
        self._begun = False
        self._unfit = 0
        self.items: dict[str, Item] = {}
        self.positions: dict[int, int] = {}
        self.complete = False

    @property
    def bad(self) -> int:
        """Updates left out, in whole or in part."""
        return self._topic.bad + self._unfit

    def update(self, timeout_s: float = 30.0) -> bool:
        """Take in everything the topic holds now.

        Returns:
            whether anything changed.

        Raises:
            KafkaUnreachableError: Kafka does not answer.
            TimeoutError: the end was not reached in time.

        What was read before an error is kept.
        """
        deadline = time.monotonic() + timeout_s
        changed = False
        self._begun = self._begun or self._topic.seek({})
        if self._begun:
            ends = self._topic.ends()
            while any(self._topic.positions()[number] < end for number, end in ends.items()):
                if time.monotonic() > deadline:
                    raise TimeoutError(f"the items topic was not read to its end within {timeout_s:g} s")
                for record in self._topic.poll(_POLL_S):
                    changed = True
                    self._take(record)
            self.positions = self._topic.positions()
        self.complete = True
        return changed

    def close(self) -> None:
        """Release the connection."""
        self._topic.close()

    def _take(self, record: ItemRecord) -> None:
        self.positions[record.partition] = record.offset + 1
        if record.item is None:
            self.items.pop(record.item_id, None)
            return
        item = record.item.fitting(self._content_width)
        if item is not record.item and self._content_width:
            self._unfit += 1
            log.warning(
                "embedding of item %r left out: %d numbers, model.content_width is %d",
                item.item_id, len(record.item.embedding or ()), self._content_width,
            )  # fmt: skip
        self.items[item.item_id] = item
