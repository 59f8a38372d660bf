"""A replica that answers some of its users with another version: a batch is divided, and each part is one bundle's."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pinrec.bundle import Bundle
from pinrec.delta import Delta
from pinrec.split import version_for
from serving.answers import Answerer, Outcome
from serving.api import RecommendationRequest
from serving.live import LiveBundle


@dataclass(frozen=True, slots=True)
class _Other:
    """A version beside the current one, with the states of its own users."""

    live: LiveBundle
    answerer: Answerer


class Split:
    """The versions of `serving.split`. Where one cannot serve, its users get the current one, and `troubles` says so.

    Args:
        shares: version -> share of the users.
        live: loads and watches a version.
        answerer: makes lists, with room for the states of so large a share of the users.
    """

    def __init__(
        self,
        shares: Mapping[str, float],
        live: Callable[[str], LiveBundle],
        answerer: Callable[[float], Answerer],
    ) -> None:
        self._shares = dict(shares)
        self._others = {version: _Other(live(version), answerer(share)) for version, share in shares.items()}

    def start(self, poll_s: float) -> None:
        """Load the versions, and try again those that cannot be loaded now."""
        for other in self._others.values():
            other.live.refresh()
            other.live.start(poll_s)

    def answer(
        self,
        answerer: Answerer,
        bundle: Bundle,
        queries: Sequence[RecommendationRequest],
        users: Sequence[str],
        delta_of: Callable[[Bundle], Delta | None] = lambda _: None,
    ) -> tuple[list[Outcome], list[Outcome]]:
        """See `Answerer.answer`; each user's by the bundle that is theirs.

        Args:
            answerer, bundle: those of the current version.
            delta_of: what has happened to the catalogue since a bundle was made.
        """
        if not self._others:
            return answerer.answer(bundle, queries, users, delta_of(bundle))
        parts: dict[str | None, tuple[list[int], list[int]]] = {}
        names = [*(query.user_id for query in queries), *users]
        for i, user_id in enumerate(names):
            of_queries, of_users = parts.setdefault(self._of(user_id), ([], []))
            (of_queries if i < len(queries) else of_users).append(i if i < len(queries) else i - len(queries))
        answers: dict[int, Outcome] = {}
        lists: dict[int, Outcome] = {}
        for version, (of_queries, of_users) in parts.items():
            other = self._others[version] if version is not None else None
            mine = (other.live.bundle if other else None) or bundle
            makes = other.answerer if other and mine is not bundle else answerer
            asked, owed = [queries[i] for i in of_queries], [users[i] for i in of_users]
            made = makes.answer(mine, asked, owed, delta_of(mine))
            answers.update(zip(of_queries, made[0], strict=True))
            lists.update(zip(of_users, made[1], strict=True))
        return [answers[i] for i in range(len(queries))], [lists[i] for i in range(len(users))]

    def forget_deleted(self) -> None:
        """See `Answerer.forget_deleted`."""
        for other in self._others.values():
            other.answerer.forget_deleted()

    @property
    def troubles(self) -> list[str]:
        """Versions that should answer some users and do not."""
        return [
            f"serving.split: {version} does not serve: {other.live.trouble}"
            for version, other in self._others.items()
            if other.live.bundle is None
        ]

    @property
    def status(self) -> dict[str, dict[str, Any]]:
        """Of each version its share, and since when it serves (epoch s, None = it does not)."""
        return {
            version: {"share": self._shares[version], "live_since": other.live.live_since}
            for version, other in self._others.items()
        }

    def _of(self, user_id: str) -> str | None:
        version = version_for(user_id, self._shares)
        return version if version is not None and self._others[version].live.bundle is not None else None
