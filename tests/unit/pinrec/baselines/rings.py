"""Small logs whose next item is certain."""

from tests.unit.pinrec.small_split import user_log

ITEMS = 12


def ring(users=72):
    """Every user goes on to the next of twelve items in a ring; all lengths come with all starts."""
    rows = [
        (f"u{u:02}", (u + step) % ITEMS, "click", float(step)) for u in range(users) for step in range(4 + u // ITEMS)
    ]
    return user_log(*rows, items=ITEMS)
