"""The catalogue as the items topic tells it: the newest state of each item, deletions applied."""

import logging
import time

from kafka import KafkaConsumer, TopicPartition
from pydantic import ValidationError

from pinrec.items import Item
from streaming.config import KafkaSettings
from streaming.schema import ItemUpdate, first_problem
from streaming.topics import client_options

log = logging.getLogger(__name__)

_POLL_MS = 200


class CatalogueView:
    """Reads `pinrec.items` from its beginning and keeps up when asked to. One thread at a time.

    Args:
        kafka: where.
        content_width: an embedding of another length is left out, and said so; the item stays.
    """

    def __init__(self, kafka: KafkaSettings, content_width: int) -> None:
        self._content_width = content_width
        self._consumer = KafkaConsumer(
            **client_options(kafka), group_id=None, auto_offset_reset="earliest", enable_auto_commit=False
        )
        partitions = self._consumer.partitions_for_topic(kafka.items) or {0}
        self._partitions = [TopicPartition(kafka.items, p) for p in sorted(partitions)]
        self._consumer.assign(self._partitions)
        self._consumer.seek_to_beginning(*self._partitions)
        self.items: dict[str, Item] = {}
        self.bad = 0

    def update(self, timeout_s: float = 30.0) -> bool:
        """Take in everything the topic holds now.

        Returns:
            whether anything changed.

        Raises:
            TimeoutError: the end was not reached in time; what was read is kept.
        """
        deadline = time.monotonic() + timeout_s
        ends = self._consumer.end_offsets(self._partitions)
        changed = False
        while any(self._consumer.position(p) < ends[p] for p in self._partitions):
            if time.monotonic() > deadline:
                raise TimeoutError(f"the items topic was not read to its end within {timeout_s:g} s")
            for records in self._consumer.poll(timeout_ms=_POLL_MS).values():
                for record in records:
                    changed = True
                    self._take(record.key, record.value)
        return changed

    def close(self) -> None:
        """Release the connection."""
        self._consumer.close()

    def _take(self, key: bytes | None, value: bytes | None) -> None:
        item_id = (key or b"").decode(errors="replace")
        if value is None:
            self.items.pop(item_id, None)
            return
        try:
            update = ItemUpdate.model_validate_json(value)
        except ValidationError as error:
            self.bad += 1
            log.warning("item update %r left out: %s", item_id, first_problem(error))
            return
        embedding = update.embedding if self._content_width else None
        if embedding is not None and len(embedding) != self._content_width:
            self.bad += 1
            log.warning(
                "embedding of item %r left out: %d numbers, model.content_width is %d",
                item_id, len(embedding), self._content_width,
            )  # fmt: skip
            embedding = None
        self.items[update.item_id] = Item(
            item_id=update.item_id,
            title=update.title,
            categories=update.categories,
            embedding=embedding,
            created_at=update.created_at,
        )
