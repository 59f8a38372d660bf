"""From a bundle just made to the version that serves, or to a refusal that everybody can read."""

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pinrec.bundle import Bundle, BundleError
from pinrec.config import GateSettings, GenerationConfig
from pinrec.dataset import EventColumns
from pinrec.evaluation import prequential
from pinrec.gate import judge, sample_histories
from pinrec.registry import Registry
from pinrec.verdicts import Refusal
from pinrec.versions import RegistryError

log = logging.getLogger(__name__)

_EARLIER_ENGAGED: Final = (500, 5_000)
_PER_USER: Final = 5
_EARLIER_ROWS: Final = 200_000
_EARLIER_USERS: Final = 500


@dataclass(frozen=True, slots=True)
class Decision:
    """What became of a candidate; without refusals it serves."""

    version: str
    refusals: tuple[Refusal, ...]
    passed_over: tuple[str, ...] = ()


class Candidates:
    """Stores candidates, has them judged, and lets serve what passes."""

    def __init__(self, registry: Registry, limits: GateSettings, generation: GenerationConfig) -> None:
        self._registry, self._limits, self._generation = registry, limits, generation

    def offer(
        self, candidate: Bundle, learner: Mapping[str, Tensor], serving: Bundle | None, parent: str | None,
        events: EventColumns, earlier: NDArray[np.int64],
    ) -> Decision:  # fmt: skip
        """Store a candidate and let it serve, or write down why it must not.

        Args:
            learner: what training goes on from.
            serving: what it is compared with; None = nothing serves yet.
            parent: the version it was trained on from; what the registry pointed to then.
            events: in log order.
            earlier: rows of those that both it and its parent were trained on, ascending.

        Raises:
            RegistryError: the registry cannot be read or written; what serves has not changed.
            BundleError: what was written fails a check; the same.
        """
        if serving is not None:
            recalls = earlier_recalls(serving, candidate, events, earlier, self._generation)
            metrics = candidate.manifest.metrics | recalls
            candidate = replace(candidate, manifest=candidate.manifest.model_copy(update={"metrics": metrics}))
        version = self._registry.publish(candidate, learner, activate=False)
        histories = sample_histories(events, self._limits.users, candidate.config.history)
        judgement = judge(candidate, serving, histories, self._limits, self._generation)
        for sentence in judgement.passed_over:
            log.info("%s, passed over: %s", version, sentence)
        if judgement.refusals:
            return self._refuse(judgement.refusals, version)
        verdict = self._registry.advance(version, parent)
        if verdict.state != "passed":
            log.error("candidate %s refused: %s", version, verdict.reason)
            return Decision(version, verdict.refusals)
        return Decision(version, (), judgement.passed_over)

    def refused(self, error: BundleError) -> Decision:
        """Write down that a candidate could not even be stored."""
        message = str(error).removeprefix(f"{error.check}: ")
        return self._refuse((Refusal(check=error.check, message=message),), None)

    def _refuse(self, refusals: tuple[Refusal, ...], version: str | None) -> Decision:
        try:
            version = self._registry.refuse(refusals, version)
        except RegistryError as error:  # a candidate without a verdict serves nowhere either
            version = version or "without a number"
            log.warning("candidate %s: its refusal cannot be written down: %s", version, error)
        for refusal in refusals:
            log.error("candidate %s refused: %s", version, refusal)
        return Decision(version, refusals)


def earlier_recalls(
    serving: Bundle, candidate: Bundle, events: EventColumns, earlier: NDArray[np.int64], generation: GenerationConfig
) -> dict[str, float]:
    """Recall@10 of both versions on the newest of the `earlier` rows of the events; none where there are no such rows.

    Both were trained on them, so the figures say nothing but whether the round destroyed what was known.

    Returns:
        earlier_recall@10, candidate_earlier_recall@10 and earlier_events, how many targets there were.
    """
    recent = events.at(earlier[-_EARLIER_ROWS:])
    engaged = np.flatnonzero(recent.engaged(serving.vocabulary))
    if not len(engaged):
        return {}
    # A few of each user, as of many a list of ten could hold but a part; and half of all at most, so that there is a
    # past to predict them from.
    few = int(np.clip(_PER_USER * len(np.unique(recent.user[engaged])), *_EARLIER_ENGAGED))
    first = int(engaged[max(len(engaged) // 2, len(engaged) - few)])
    found = [
        prequential(
            bundle.model,
            bundle.table,
            bundle.catalogue,
            recent,
            first,
            mode=bundle.manifest.mode,
            steps=generation.steps,
            in_turn=generation.in_turn,
            outcomes=bundle.outcomes,
            popularity=serving.popularity,
            search=bundle.index.search,
            max_users=_EARLIER_USERS,
        )
        for bundle in (serving, candidate)
    ]
    before, after = (figures["recall@10"] for figures in found)
    if math.isnan(before) or math.isnan(after):
        return {}
    targets = min(figures["targets"] for figures in found)
    return {"earlier_recall@10": before, "candidate_earlier_recall@10": after, "earlier_events": targets}
