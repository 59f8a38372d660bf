"""The one way to read `pinrec.items`: records of the topic as items, from any position on."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from kafka import KafkaConsumer, TopicPartition
from kafka.errors import KafkaError
from pydantic import ValidationError

from pinrec.items import Item
from streaming.config import KafkaSettings
from streaming.schema import ItemUpdate, first_problem
from streaming.topics import client_options, require_listening, unreachable

log = logging.getLogger(__name__)

_RPC_MS: Final = 2_000
_FETCH_WAIT_MS: Final = 200


@dataclass(frozen=True, slots=True)
class ItemRecord:
    """The state of an item since an offset; `item` is None where it was deleted."""

    item_id: str
    item: Item | None
    partition: int
    offset: int


class ItemsTopic:
    """Reads the topic; every partition, no group. One thread at a time.

    Args:
        kafka: where.
        client_id: by which Kafka knows the reader.

    Attributes:
        bad: records left out since they hold no item.

    Raises:
        KafkaUnreachableError: no broker answered.
    """

    def __init__(self, kafka: KafkaSettings, client_id: str) -> None:
        self._kafka = kafka
        options = client_options(kafka, client_id)
        require_listening(kafka, _RPC_MS / 1000)
        try:
            self._consumer = KafkaConsumer(
                **options,
                group_id=None,
                auto_offset_reset="earliest",
                enable_auto_commit=False,
                bootstrap_timeout_ms=_RPC_MS,
                fetch_max_wait_ms=_FETCH_WAIT_MS,
                allow_auto_create_topics=False,
                metrics_enabled=False,
            )
        except KafkaError as error:
            raise unreachable(kafka, str(error)) from error
        self._partitions: list[TopicPartition] = []
        self.bad = 0

    def seek(self, positions: Mapping[int, int]) -> bool:
        """Read on from these positions; a partition that is not named is read from its beginning.

        Returns:
            whether the topic is there: nobody makes it for a bare log of events.

        Raises:
            KafkaUnreachableError: Kafka does not answer.
        """
        try:
            if not self._partitions:
                numbers = self._consumer.partitions_for_topic(self._kafka.items) or ()
                self._partitions = [TopicPartition(self._kafka.items, number) for number in sorted(numbers)]
                self._consumer.assign(self._partitions)
            for partition in self._partitions:
                self._consumer.seek(partition, positions.get(partition.partition, 0))
        except KafkaError as error:
            raise unreachable(self._kafka, str(error)) from error
        return bool(self._partitions)

    def positions(self) -> dict[int, int]:
        """The next offset of each partition.

        Raises:
            KafkaUnreachableError: Kafka does not answer.
        """
        try:
            return {p.partition: self._consumer.position(p, timeout_ms=_RPC_MS) or 0 for p in self._partitions}
        except KafkaError as error:
            raise unreachable(self._kafka, str(error)) from error

    def ends(self) -> dict[int, int]:
        """The offset behind the last record of each partition.

        Raises:
            KafkaUnreachableError: Kafka does not answer.
        """
        try:
            ends = self._consumer.end_offsets(self._partitions, timeout_ms=_RPC_MS)
        except KafkaError as error:
            raise unreachable(self._kafka, str(error)) from error
        return {partition.partition: end for partition, end in ends.items()}

    def poll(self, timeout_s: float) -> list[ItemRecord]:
        """What came, in order; none where nothing did within the time.

        Raises:
            KafkaUnreachableError: Kafka does not answer.
        """
        try:
            polled = self._consumer.poll(timeout_ms=round(timeout_s * 1000))
        except KafkaError as error:
            raise unreachable(self._kafka, str(error)) from error
        records = [record for some in polled.values() for record in some]
        read = (self._read(record.key, record.value, record.partition, record.offset) for record in records)
        return [record for record in read if record is not None]

    def close(self) -> None:
        """Release the connection."""
        self._consumer.close()

    def _read(self, key: bytes | None, value: bytes | None, partition: int, offset: int) -> ItemRecord | None:
        item_id = (key or b"").decode(errors="replace")
        if value is None:
            return ItemRecord(item_id, None, partition, offset)
        try:
            update = ItemUpdate.model_validate_json(value)
        except ValidationError as error:
            self.bad += 1
            log.warning("item update %r left out: %s", item_id, first_problem(error))
            return None
        if update.item_id != item_id:  # its deletion would come under the key, and find nothing
            self.bad += 1
            log.warning("item update %r left out: the key must be the item_id, not %r", update.item_id, item_id)
            return None
        item = Item(
            item_id=update.item_id,
            title=update.title,
            categories=update.categories,
            embedding=update.embedding,
            created_at=update.created_at,
            author=update.author,
            numeric=update.numeric,
        )
        return ItemRecord(item_id, item, partition, offset)
