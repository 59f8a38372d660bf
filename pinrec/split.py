"""Which users another version than the current one answers."""

from collections.abc import Mapping
from typing import Final

from pinrec.hashing import hash_id
from pinrec.versions import version_number

_RANGE: Final = 2.0**64


def version_for(user_id: str, shares: Mapping[str, float]) -> str | None:
    """The version that answers a user; None = the current one.

    A function of the two alone, so a user stays with a version, on every replica. Who a version has, it keeps when its
    own share grows, as long as no version of a lower number joins.
    """
    at = hash_id(f"split {user_id}") / _RANGE
    for version in sorted(shares, key=version_number):
        if at < shares[version]:
            return version
        at -= shares[version]
    return None
