"""The registry as people read it: the body of /v1/models, and what `pinrec models` does without an application."""

from pinrec.registry import Registry
from pinrec.verdicts import Refusal
from pinrec.versions import ForbiddenVersionError, NothingOlderError, RegistryError, UnknownVersionError, VersionInfo
from serving.api import ModelRefusal, Models, ModelVersion
from serving.problems import Problem
from streaming.version_outcomes import Outcomes, outcomes_of

PINNED = "the deploy file pins a version (pinned_version), and that wins"


def models_of(registry: Registry, pinned: str | None) -> Models:
    """All versions, newest first.

    Raises:
        RegistryError, OSError: it cannot be read.
    """
    versions = registry.versions()
    outcomes = outcomes_of(registry.read_outcomes())
    return Models(
        current=next((info.version for info in versions if info.current), None),
        pinned=pinned,
        versions=[_version(info, outcomes.get(info.version)) for info in reversed(versions)],
    )


def _version(info: VersionInfo, outcomes: Outcomes | None) -> ModelVersion:
    refusals = info.verdict.refusals if info.verdict else ()
    return ModelVersion(
        version=info.version,
        created_at=info.created_at,
        trained_until=info.trained_until,
        items=info.items,
        current=info.current,
        state=info.state,
        refusals=[ModelRefusal(**refusal.model_dump()) for refusal in refusals],
        impressions=outcomes.impressions if outcomes else 0,
        engaged=outcomes.engaged if outcomes else 0,
        metrics=info.metrics,
        problem=info.problem,
    )


def activate(registry: Registry, pinned: str | None, version: str, force: bool) -> None:
    """Point the registry at a version.

    Raises:
        Problem: it cannot be; naming the remedy.
    """
    if pinned:
        raise Problem(422, PINNED, "version")
    try:
        registry.activate(version, force)
    except RegistryError as error:
        raise _problem(error) from None


def rollback(registry: Registry, pinned: str | None, reason: str) -> str:
    """Go back to the newest older version that passed the gate, and withdraw the current one; the version gone to.

    Raises:
        Problem: there is none, or the registry cannot be written.
    """
    if pinned:
        raise Problem(422, PINNED, "version")
    try:
        return registry.rollback(Refusal(check="operator", message=reason or "rolled back by an operator"))
    except RegistryError as error:
        raise _problem(error) from None


def _problem(error: RegistryError) -> Problem:
    conflict = isinstance(error, ForbiddenVersionError | NothingOlderError)
    status = 404 if isinstance(error, UnknownVersionError) else 409 if conflict else 503
    return Problem(status, str(error), "version")
