"""An archive as an ingestor would have written it, of made-up events, for tests of training."""

import random

from streaming.archive import Archive, RowBuffer

USERS, ITEMS, PARTITIONS = 12, 30, 2


class ArchivedLog:
    """Events of a few users, archived as an ingestor would, in two partitions."""

    def __init__(self, state):
        self.archive = Archive(state.archive)
        self.next = [0] * PARTITIONS
        self.count = 0
        self._random = random.Random(7)
        self._late = []

    def add(self, events, action=None, late=False, lost=False):
        """Archive so many more events; a fifth of them impressions.

        Those of partition 1 come only with the next where they are `late`, and all of them never where they are `lost`.
        """
        buffers = [RowBuffer(partition, self.next[partition], 0.0) for partition in range(PARTITIONS)]
        for _ in range(events):
            self.count += 1
            user = self._random.randrange(USERS)
            buffer = buffers[user % PARTITIONS]
            item = self._random.randrange(ITEMS)
            action_ = action or self._random.choice(["impression", "click", "click", "save", "share"])
            self._row(buffer, user_id=f"user-{user}", item_id=f"item-{item}", action=action_, surface="home")
        self.next = [buffer.next for buffer in buffers]
        if lost:
            return
        self._write([*self._late, *buffers[: 1 if late else None]])
        self._late = buffers[1:] if late else []

    def only(self, user, events):
        """Archive clicks of one user."""
        buffer = RowBuffer(user % PARTITIONS, self.next[user % PARTITIONS], 0.0)
        for item in range(events):
            self.count += 1
            self._row(buffer, user_id=f"user-{user}", item_id=f"item-{item}", action="click", surface="home")
        self._write([buffer])

    def forget(self, user):
        """Archive the deletion of a user."""
        buffer = RowBuffer(user % PARTITIONS, self.next[user % PARTITIONS], 0.0)
        self._row(buffer, user_id=f"user-{user}", deleted=True)
        self._write([buffer])

    def of(self, user):
        """How many rows of a user there are."""
        return self.archive.read(columns=["user_id"])["user_id"].to_pylist().count(f"user-{user}")

    def _row(self, buffer, *, deleted=False, **fields):
        at = 1_760_000_000.0 + 30 * self.count
        place = {
            "offset": buffer.next,
            "arrived": at,
            "event_id": f"e{self.count}",
            "timestamp": at,
            "deleted": deleted,
        }
        row = {"item_type": None if deleted else "item"} | place | fields
        names = ("offset", "arrived", "event_id", "user_id", "item_id", "action", "surface", "timestamp", "item_type")
        others = ("query", "feed_id", "request_id", "position")
        buffer.add((*(row.get(name) for name in names), *(None for _ in others), deleted))
        buffer.next += 1

    def _write(self, buffers):
        for buffer in buffers:
            if buffer.next > buffer.first:
                self.archive.write("events", buffer)
                self.next[buffer.partition] = buffer.next
