"""The partitions a member has: where their sinks stand, and how word of a new assignment arrives."""

import time
from collections import deque
from collections.abc import Iterable

from kafka import ConsumerRebalanceListener, KafkaConsumer, TopicPartition

from streaming.archive import RowBuffer
from streaming.generation_queue import GenerationQueue


class Lane:
    """One assigned partition and where its sinks stand."""

    __slots__ = ("applied", "end", "generation", "next", "partition", "rows", "topic_partition")

    def __init__(
        self, topic: str, partition: int, applied: int, archived: int, generation: GenerationQueue | None, end: int
    ) -> None:
        self.partition = partition
        self.topic_partition = TopicPartition(topic, partition)
        self.applied = applied
        self.rows = RowBuffer(partition, archived, time.monotonic())
        self.generation = generation
        self.end = end
        self.next = min(applied, archived, *([generation.next] if generation else []))


class AssignmentFlags(ConsumerRebalanceListener):  # type: ignore[misc]
    """Runs on kafka-python's IO thread, which also sends heartbeats: pauses, notes, and returns.

    Paused partitions are not fetched before the poll thread has sought to where their sinks stand.
    """

    def __init__(self, consumer: KafkaConsumer, rebalances: deque[list[TopicPartition]]) -> None:
        self._consumer, self._rebalances = consumer, rebalances

    def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        """Wait for what is assigned instead; the store refuses what would come too late."""

    def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        """Keep the partitions still until the poll thread takes them up."""
        partitions = list(assigned)
        self._consumer.pause(*partitions)
        self._rebalances.append(partitions)
