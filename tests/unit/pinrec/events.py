"""Small logs for tests."""

from pinrec.config import Vocabulary
from pinrec.dataset import EventColumns


def log(*rows, vocabulary=None):
    """Events of (user, item, action, timestamp[, feed]) on the first surface."""
    vocabulary = vocabulary or Vocabulary()
    users, items, actions, timestamps, *feeds = zip(*[(*row, None)[:5] for row in rows], strict=True)
    return EventColumns.of_columns(
        {
            "user_id": users,
            "item_id": items,
            "action": actions,
            "surface": [vocabulary.surfaces[0]] * len(rows),
            "timestamp": timestamps,
            "feed_id": feeds[0],
        },
        vocabulary,
    )
