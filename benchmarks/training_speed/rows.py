"""Which of RecBole's rows hold each prediction once. Standard library only: RecBole's environment imports it."""

from collections.abc import Sequence


def covering(user: Sequence[int], length: Sequence[int]) -> list[int]:
    """Rows that together hold every target once, if each is read at all of its positions.

    RecBole makes a row for each target. Read at every position, a row also holds the targets of the rows before it,
    as many in all as it is long; the row in front of those is the next one that is needed.

    Args:
        user, length: of each row; a user's rows stand together, by time.

    Returns:
        Indices of rows, from the last to the first.
    """
    chosen: list[int] = []
    row = len(user) - 1
    while row >= 0:
        chosen.append(row)
        # A row is as long as there are targets up to it, or cut: this never steps into another user's rows.
        row -= length[row]
    return chosen
