"""Kafka -> sequence store + archive + generation, exactly once in effect.

Each of the three sinks keeps its own durable position: the store its offset, written in one
transaction with the events; the archive the ranges in its file names; generation the consumer
group's committed offset. On assignment reading starts at the least of the three, and each sink
skips what lies before its own. A crash therefore loses nothing and repeats nothing in effect,
although the three move at different paces.

Plain code, one thread (`run`), no Ray.
"""

import logging
import threading
import time
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from kafka import KafkaConsumer, OffsetAndMetadata, TopicPartition
from kafka.coordinator.assignors.range import RangePartitionAssignor
from kafka.errors import FencedInstanceIdError, KafkaError, KafkaTimeoutError, NoOffsetForPartitionError

from pinrec.hashing import hash_id
from pinrec.history import HistoryEvent
from streaming.archive import Archive, RowBuffer
from streaming.config import IngestSettings, KafkaSettings
from streaming.dead_letter_limit import DeadLetterLimit, IngestHaltedError
from streaming.dead_letters import publish_dead_letter
from streaming.generation_queue import GenerationQueue, GenerationSink
from streaming.ingest_lanes import AssignmentFlags, Lane
from streaming.ingest_status import IngestStatus, PartitionStatus
from streaming.publisher import EventPublisher, PublishError
from streaming.schema import BadEventError, Deletion, EventCodec
from streaming.stores.base import Batch, Change, OffsetMismatchError, SequenceStore, StoreMismatchError
from streaming.topics import client_options, cluster_id
from streaming.watchdog import StallWatch

__all__ = ["GenerationSink", "IngestHaltedError", "IngestStatus", "Ingestor"]

log = logging.getLogger(__name__)

_POLL_MS: Final = 50
_PROBE_S: Final = 0.2
_COMMIT_S: Final = 1.0
_RETRY_S: Final = 1.0
_RPC_MS: Final = 10_000
_PROBE_MS: Final = 1_000
_CLOSE_MS: Final = 3_000
_SETTLE_S: Final = 10.0
"""How long a restarted broker may claim to hold less than was applied."""

Record = Any  # kafka.consumer.fetcher.ConsumerRecord


class _RejoinError(Exception):
    """This membership is spoilt; join the group anew."""


class _Staged(NamedTuple):
    """A decoded range on its way to the sinks that lack it; None where a sink has it."""

    lane: Lane
    next_offset: int
    batch: Batch | None
    rows: list[tuple[Any, ...]] | None
    engaged: dict[str, None] | None


class Ingestor:
    """One member of the consumer group. Start several, in any process, to share the partitions.

    Args:
        kafka, ingest: settings.
        codec: decodes events; holds the vocabulary.
        store, archive: sinks, shared by all members.
        generator: told whose histories changed; None = nobody is.
        member: name for static membership: a restart under the same name takes its partitions back without a rebalance.
            Must be distinct among members that run at the same time.
        clock: epoch seconds; replaced in tests.
    """

    def __init__(
        self,
        kafka: KafkaSettings,
        ingest: IngestSettings,
        codec: EventCodec,
        store: SequenceStore,
        archive: Archive,
        generator: GenerationSink | None = None,
        *,
        member: str | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._kafka, self._ingest, self._codec, self._store, self._archive = kafka, ingest, codec, store, archive
        self._generator = generator if ingest.generate else None
        self._member, self._clock = member, clock
        self._topic = kafka.events
        self._consumer: KafkaConsumer | None = None
        self._publisher: EventPublisher | None = None
        self._lanes: dict[int, Lane] = {}
        self._rebalances: deque[list[TopicPartition]] = deque()
        self._committed: dict[int, int] = {}
        self._ahead_since: dict[int, float] = {}
        self._limit = DeadLetterLimit(ingest.max_bad_share, ingest.min_bad_events)
        self._watch = StallWatch(ingest.stalled_after_s)
        self._stop = threading.Event()
        self._probe_at = self._commit_at = self._answered_at = 0.0
        self._applied = self._duplicates = self._deleted = self._refused = 0
        self._generated = self._gaps = self._stalls = 0
        self._connected = False
        self._halted: str | None = None
        self._last_error: str | None = None

    def run(self, stop: threading.Event | None = None) -> None:
        """Ingest until `stop` (this event, or the method). While Kafka is away it waits and tries again.

        Raises:
            IngestHaltedError: too many events were refused.
            StoreMismatchError: store or archive belong to another log.
            StoreFullError: the store reached its limit.
            kafka.errors.FencedInstanceIdError: another process took this member's name.
        """
        self._stop = stop or self._stop
        try:
            while not self._stop.is_set():
                try:
                    self._join()
                    self._consume()
                except FencedInstanceIdError:
                    raise
                except (_RejoinError, KafkaError, PublishError, OffsetMismatchError, OSError) as error:
                    self._note(error)
                    # Nothing buffered is kept: what another member took over is written by that member.
                    self._leave(flush=not isinstance(error, OffsetMismatchError))
                    self._stop.wait(_RETRY_S)
        except Exception as error:
            self._halted = f"{type(error).__name__}: {error}"
            log.error("ingestion halted: %s", error)
            self._leave(flush=True)
            raise
        self._leave(flush=True)

    def stop(self) -> None:
        """Let `run` end soon. May be called from any thread or signal handler."""
        self._stop.set()

    def status(self) -> IngestStatus:
        """Counters and positions. May be called from any thread."""
        lanes = list(self._lanes.values())
        return IngestStatus(
            connected=self._connected,
            applied=self._applied,
            duplicates=self._duplicates,
            deleted=self._deleted,
            dead_letters=self._refused,
            generated_submitted=self._generated,
            gaps=self._gaps,
            stalls=self._stalls,
            as_of=self._store.as_of(),
            halted=self._halted,
            last_error=self._last_error,
            lag=sum(max(0, lane.end - lane.applied) for lane in lanes),
            owed=sum(lane.generation.owed for lane in lanes if lane.generation),
            partitions={
                lane.partition: PartitionStatus(
                    position=lane.next,
                    applied=lane.applied,
                    archived=lane.rows.first,
                    generated=lane.generation.done if lane.generation else None,
                    end=lane.end,
                )
                for lane in lanes
            },
        )

    # Membership

    def _join(self) -> None:
        self._store.bind(f"{cluster_id(self._kafka)}/{self._topic}", self._codec.vocabulary)
        self._consumer = KafkaConsumer(
            **client_options(self._kafka, "pinrec-ingest"),
            group_id=self._ingest.group,
            group_instance_id=self._member,
            partition_assignment_strategy=[RangePartitionAssignor],
            session_timeout_ms=self._ingest.session_timeout_ms,
            heartbeat_interval_ms=min(1_000, self._ingest.session_timeout_ms // 3),
            enable_auto_commit=False,
            # An offset that Kafka no longer has must be noticed, not quietly replaced.
            auto_offset_reset="none",
            fetch_max_wait_ms=self._ingest.fetch_max_wait_ms,
            max_poll_records=self._ingest.max_poll_records,
            request_timeout_ms=15_000,
            bootstrap_timeout_ms=5_000,
            allow_auto_create_topics=False,
            metrics_enabled=False,
        )
        self._consumer.subscribe([self._topic], listener=AssignmentFlags(self._consumer, self._rebalances))
        # Known before joining: the leader of a group assigns what it knows, and would assign nothing at first.
        if not self._consumer.partitions_for_topic(self._topic):
            raise _RejoinError(f"Kafka has no topic {self._topic}; `pinrec up` makes it, or correct kafka.events")
        self._answered_at = time.monotonic()
        self._watch.forget()

    def _leave(self, flush: bool) -> None:
        try:
            if self._connected and flush:
                self._commit(wait=True)
            self._drop_lanes(flush)
        except (KafkaError, OSError) as error:
            self._note(error)
        consumer, self._consumer = self._consumer, None
        publisher, self._publisher = self._publisher, None
        self._connected = False
        self._rebalances.clear()
        try:
            if publisher is not None:
                publisher.close(timeout_s=_CLOSE_MS / 1000)
            if consumer is not None:
                consumer.close(timeout_ms=_CLOSE_MS)
        except (KafkaError, OSError) as error:
            log.info("closing a Kafka client: %s", error)

    def _drop_lanes(self, flush: bool) -> dict[int, GenerationQueue]:
        """Give all partitions up; returns what they still owe, for those that come back at once."""
        lanes, self._lanes = self._lanes, {}
        if flush:
            for lane in lanes.values():
                # Late, if another member has the partition by now; harmless, as each offset is read once.
                self._flush(lane)
        return {number: lane.generation for number, lane in lanes.items() if lane.generation}

    def _take_up(self, partitions: Iterable[TopicPartition], queues: Mapping[int, GenerationQueue]) -> None:
        """Start on newly assigned partitions: seek to the least of the three positions."""
        consumer = self._consumer
        assert consumer is not None
        wanted = list(partitions)
        begins = consumer.beginning_offsets(wanted, timeout_ms=_RPC_MS)
        ends = consumer.end_offsets(wanted, timeout_ms=_RPC_MS)
        archived = self._archive.positions(self._topic)
        for partition in wanted:
            number, begin, end = partition.partition, begins[partition], ends[partition]
            applied = self._reach("the sequence store", number, self._store.offset(number), begin, end)
            kept = self._reach("the archive", number, archived.get(number), begin, end)
            if applied < begin:
                self._gap(number, applied, begin)
                self._store.apply(number, applied, begin, [], self._store.as_of() or 0.0)
            if kept < begin:
                self._archive.mark_lost(self._topic, number, kept, begin)
            generation = None
            if self._generator is not None:
                committed = consumer.committed(partition, timeout_ms=_RPC_MS)
                owed = begin if committed is None else min(max(committed, begin), end)
                generation = queues.get(number)
                if generation is None or generation.next < owed:
                    generation = GenerationQueue(self._generator, number, owed)
            lane = Lane(self._topic, number, max(applied, begin), max(kept, begin), generation, end)
            self._lanes[number] = lane
            self._committed.pop(number, None)
            consumer.seek(partition, lane.next)
            log.info("partition %d: from %d (store %d, archive %d, end %d)", number, lane.next, lane.applied, kept, end)
        consumer.resume(*wanted)

    def _reach(self, sink: str, partition: int, position: int | None, begin: int, end: int) -> int:
        """A sink's position, checked against the log's end."""
        if position is None or position <= end:
            self._ahead_since.pop(partition, None)
            return begin if position is None else position
        since = self._ahead_since.setdefault(partition, time.monotonic())
        message = (
            f"{sink} has partition {partition} of {self._topic} up to offset {position}, Kafka only up to {end}: the "
            "topic was deleted and made again, or the broker lost its data. Go back to the former log, or start with "
            "another state.root"
        )
        if time.monotonic() - since < _SETTLE_S:
            raise _RejoinError(message)
        raise StoreMismatchError(message)

    # The loop

    def _consume(self) -> None:
        consumer = self._consumer
        assert consumer is not None
        while not self._stop.is_set():
            try:
                batches = consumer.poll(timeout_ms=_POLL_MS)
            except NoOffsetForPartitionError:
                # A group without a committed offset; its partitions are about to be sought.
                if not self._rebalances:
                    raise
            if self._rebalances:
                # What this poll returned is read again from where each sink stands.
                queues = self._drop_lanes(flush=True)
                while len(self._rebalances) > 1:
                    self._rebalances.popleft()
                self._take_up(self._rebalances.popleft(), queues)
                continue
            staged: list[_Staged] = []
            for topic_partition, records in batches.items():
                lane = self._lanes.get(topic_partition.partition)
                if lane is not None:
                    self._take(lane, records, staged)
            self._apply(staged)
            self._tick()

    def _tick(self) -> None:
        now = time.monotonic()
        for lane in self._lanes.values():
            if lane.rows.next > lane.rows.first and now - lane.rows.since >= self._ingest.archive_flush_s:
                self._flush(lane)
            if lane.generation:
                self._generated += lane.generation.advance()
        if now >= self._commit_at:
            self._commit_at = now + _COMMIT_S
            self._commit()
        if now >= self._probe_at:
            self._probe_at = now + _PROBE_S
            self._probe()

    def _probe(self) -> None:
        """Ask Kafka for the ends: what tells an idle log from a silent broker or a stalled fetch."""
        consumer, lanes = self._consumer, list(self._lanes.values())
        assert consumer is not None
        if not lanes:
            return
        asked_at = self._clock()
        try:
            ends = consumer.end_offsets([lane.topic_partition for lane in lanes], timeout_ms=_PROBE_MS)
        except KafkaError as error:
            if self._connected:
                log.warning("Kafka does not answer (%s: %s); waiting for it", type(error).__name__, error)
            self._connected, self._last_error = False, f"{type(error).__name__}: {error}"
            if time.monotonic() - self._answered_at >= self._ingest.stalled_after_s:
                raise _RejoinError("Kafka did not answer for too long") from error
            return
        if not self._connected:
            log.info("connected to Kafka; partitions %s", sorted(self._lanes))
        self._connected, self._answered_at = True, time.monotonic()
        touched = {}
        for lane in lanes:
            lane.end = ends[lane.topic_partition]
            if lane.next < lane.end:
                self._pass_over(lane)
            if lane.applied >= lane.end:
                touched[lane.partition] = asked_at
            elif self._watch.stalled(lane.partition, lane.next, lane.end):
                self._stalls += 1
                raise _RejoinError(
                    f"partition {lane.partition} stands at {lane.next} although Kafka has events up to {lane.end}"
                )
        if touched:
            self._store.touch(touched)

    def _pass_over(self, lane: Lane) -> None:
        """Follow the consumer over offsets that are no events, such as the end of a transaction."""
        assert self._consumer is not None
        try:
            position = self._consumer.position(lane.topic_partition, timeout_ms=_PROBE_MS)
        except KafkaTimeoutError:
            return
        if position is not None and position > lane.next and not self._rebalances:
            staged: list[_Staged] = []
            self._take_range(lane, [], position, staged)
            self._apply(staged)

    def _commit(self, wait: bool = False) -> None:
        """Tell the group how far each partition is; what restarts owe in generations follows from it."""
        consumer = self._consumer
        if consumer is None:
            return
        done = {p: lane.generation.done if lane.generation else lane.applied for p, lane in self._lanes.items()}
        moved = {partition: offset for partition, offset in done.items() if self._committed.get(partition) != offset}
        if not moved:
            return
        offsets = {TopicPartition(self._topic, p): OffsetAndMetadata(offset, "", -1) for p, offset in moved.items()}
        if wait:
            consumer.commit(offsets, timeout_ms=_CLOSE_MS)
        else:
            consumer.commit_async(offsets)
        self._committed.update(moved)

    # Events

    def _take(self, lane: Lane, records: Sequence[Record], staged: "list[_Staged]") -> None:
        if records[0].offset < lane.next:
            records = [record for record in records if record.offset >= lane.next]
            if not records:
                return
        elif records[0].offset > lane.next:
            self._check_hole(lane, records[0].offset)
        next_offset = records[-1].offset + 1
        # Inside a range that one sink has and another has not, cut where a sink's position lies.
        marks = sorted({mark for mark in self._marks(lane) if lane.next < mark < next_offset})
        at = 0
        for mark in marks:
            cut = bisect_left(records, mark, key=lambda record: record.offset)
            self._take_range(lane, records[at:cut], mark, staged)
            self._apply(staged)
            at = cut
        self._take_range(lane, records[at:] if at else records, next_offset, staged)

    @staticmethod
    def _marks(lane: Lane) -> tuple[int, ...]:
        return (lane.applied, lane.rows.next, *([lane.generation.next] if lane.generation else []))

    def _take_range(self, lane: Lane, records: Sequence[Record], next_offset: int, staged: "list[_Staged]") -> None:
        """Decode offsets [lane.next, next_offset) for the sinks that lack them; each lacks all of them or none."""
        first = lane.next
        to_store = lane.applied <= first
        to_archive = lane.rows.next <= first
        generation = lane.generation if lane.generation and lane.generation.next <= first else None
        changes: list[Change] = []
        rows: list[tuple[Any, ...]] = []
        engaged: dict[str, None] = {}
        refused: list[tuple[Record, BadEventError]] = []
        self._decode(records, changes, rows, engaged, refused)
        batch = None
        if to_store:
            self._refuse(len(records), refused)
            as_of = min(records[-1].timestamp / 1000, self._clock()) if records else 0.0
            batch = Batch(lane.partition, lane.applied, next_offset, changes, as_of)
        staged.append(_Staged(lane, next_offset, batch, rows if to_archive else None, engaged if generation else None))

    def _apply(self, staged: "list[_Staged]") -> None:
        """Give what one poll brought to the sinks: the store first, all partitions in one transaction."""
        batches = [part.batch for part in staged if part.batch]
        for applied in self._store.apply_all(batches) if batches else ():
            self._applied += applied.taken
            self._duplicates += applied.duplicates
            self._deleted += applied.deleted
        for lane, next_offset, batch, rows, engaged in staged:
            if batch:
                lane.applied = next_offset
            if rows is not None:
                if len(lane.rows) and len(lane.rows) + len(rows) > self._ingest.archive_rows:
                    self._flush(lane)
                if lane.rows.next == lane.rows.first:
                    lane.rows.since = time.monotonic()
                lane.rows.rows += rows
                lane.rows.next = next_offset
            if engaged is not None and lane.generation:
                lane.generation.add(next_offset, engaged)
                self._generated += lane.generation.advance()
            lane.next = next_offset
        staged.clear()

    def _decode(
        self,
        records: Sequence[Record],
        changes: list[Change],
        rows: list[tuple[Any, ...]],
        engaged: dict[str, None],
        refused: list[tuple[Record, BadEventError]],
    ) -> None:
        """The hot loop: one pass over the records fills what each sink needs."""
        decode, topic = self._codec.decode, self._topic
        vocabulary = self._codec.vocabulary
        actions, surfaces, engaging = vocabulary.action_index, vocabulary.surface_index, vocabulary.engaging
        for record in records:
            offset = record.offset
            try:
                event = decode(record.key, record.value)
            except BadEventError as error:
                refused.append((record, error))
                continue
            if isinstance(event, Deletion):
                changes.append((event.user_id, None))
                rows.append((offset, record.timestamp / 1000, None, event.user_id, *_NOTHING, True))
                engaged.pop(event.user_id, None)
                continue
            user_id, action, surface, timestamp = event.user_id, event.action, event.surface, event.timestamp
            event_id = event.event_id or f"{topic}-{record.partition:05d}-{offset:016d}"
            item_id, item_type = event.item_id, event.item_type
            is_query = item_type == "query"
            subject = event.subject if is_query or item_id is None else item_id
            number = actions[action]
            changes.append(
                (
                    user_id,
                    HistoryEvent(timestamp, event_id, subject, hash_id(subject), number, surfaces[surface], is_query),
                )
            )
            rows.append(
                (
                    offset,
                    record.timestamp / 1000,
                    event_id,
                    user_id,
                    item_id,
                    action,
                    surface,
                    timestamp,
                    item_type,
                    event.query,
                    event.feed_id,
                    event.request_id,
                    event.position,
                    False,
                )
            )
            if is_query or number in engaging:
                engaged[user_id] = None

    def _refuse(self, events: int, refused: list[tuple[Record, BadEventError]]) -> None:
        """Dead letters are durable before the offset moves past their events.

        Raises:
            IngestHaltedError: too many; nothing was published and nothing is to be applied.
        """
        self._limit.add(events, len(refused), str(refused[-1][1]) if refused else "")
        if refused:
            if self._publisher is None:
                self._publisher = EventPublisher(self._kafka, self._codec)
            for record, error in refused:
                publish_dead_letter(self._publisher, self._kafka, record, error)
            self._publisher.flush()
            self._refused += len(refused)

    def _check_hole(self, lane: Lane, offset: int) -> None:
        """Offsets may be skipped by transactions or compaction; expired events are another matter."""
        assert self._consumer is not None
        begin = self._consumer.beginning_offsets([lane.topic_partition], timeout_ms=_RPC_MS)[lane.topic_partition]
        if begin > lane.next:
            raise _RejoinError(f"partition {lane.partition}: Kafka expired offsets {lane.next} to {begin} unread")
        log.debug("partition %d: offsets %d to %d hold no events", lane.partition, lane.next, offset)

    def _flush(self, lane: Lane) -> None:
        rows = lane.rows
        if rows.next > rows.first:
            self._archive.write(self._topic, rows)
            lane.rows = RowBuffer(lane.partition, rows.next, time.monotonic())

    def _gap(self, partition: int, first: int, begin: int) -> None:
        self._gaps += 1
        log.error(
            "partition %d: events %d to %d were dropped by Kafka before they were applied and are lost; "
            "raise the topic's retention, or run the ingestor more often",
            partition,
            first,
            begin,
        )

    def _note(self, error: Exception) -> None:
        self._last_error = f"{type(error).__name__}: {error}"
        log.warning("joining the group anew: %s", self._last_error)


_NOTHING: Final = (None,) * 9
