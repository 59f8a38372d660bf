"""The catalogue as the items topic tells it: the newest state of each item, deletions applied."""

import logging
import time

from kafka import KafkaConsumer, TopicPartition
from kafka.errors import KafkaError
from pydantic import ValidationError

from pinrec.items import Item
from streaming.config import KafkaSettings
from streaming.schema import ItemUpdate, first_problem
from streaming.topics import client_options, require_listening, unreachable

log = logging.getLogger(__name__)

_POLL_MS = 200
_RPC_MS = 2_000


class CatalogueView:
    """Reads `pinrec.items` from its beginning and keeps up when asked to. One thread at a time.

    Args:
        kafka: where.
        content_width: an embedding of another length is left out, and said so; the item stays.

    Attributes:
        items: by item id.
        complete: the end of the topic was reached once; before that, items may be missing.
        bad: updates left out, in whole or in part.

    Raises:
        KafkaUnreachableError: no broker answered.
    """

    def __init__(self, kafka: KafkaSettings, content_width: int) -> None:
        self._kafka, self._content_width = kafka, content_width
        options = client_options(kafka, "pinrec-catalogue")
        require_listening(kafka, _RPC_MS / 1000)
        try:
            self._consumer = KafkaConsumer(
                **options,
                group_id=None,
                auto_offset_reset="earliest",
                enable_auto_commit=False,
                bootstrap_timeout_ms=_RPC_MS,
                allow_auto_create_topics=False,
                metrics_enabled=False,
            )
        except KafkaError as error:
            raise unreachable(kafka, str(error)) from error
        self._partitions: list[TopicPartition] = []
        self.items: dict[str, Item] = {}
        self.complete = False
        self.bad = 0

    def update(self, timeout_s: float = 30.0) -> bool:
        """Take in everything the topic holds now.

        Returns:
            whether anything changed.

        Raises:
            KafkaUnreachableError: Kafka does not answer.
            TimeoutError: the end was not reached in time.

        What was read before an error is kept.
        """
        try:
            changed = self._read(time.monotonic() + timeout_s, timeout_s)
        except KafkaError as error:
            raise unreachable(self._kafka, str(error)) from error
        self.complete = True
        return changed

    def _read(self, deadline: float, timeout_s: float) -> bool:
        if not self._partitions:
            numbers = self._consumer.partitions_for_topic(self._kafka.items) or ()
            if not numbers:  # nobody has made the topic: a bare log of events
                return False
            self._partitions = [TopicPartition(self._kafka.items, number) for number in sorted(numbers)]
            self._consumer.assign(self._partitions)
            self._consumer.seek_to_beginning(*self._partitions)
        ends = self._consumer.end_offsets(self._partitions, timeout_ms=_RPC_MS)
        changed = False
        while any((self._consumer.position(p, timeout_ms=_RPC_MS) or 0) < ends[p] for p in self._partitions):
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
        if update.item_id != item_id:  # its deletion would come under the key, and find nothing
            self.bad += 1
            log.warning("item update %r left out: the key must be the item_id, not %r", update.item_id, item_id)
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
            author=update.author,
            numeric=update.numeric,
        )
