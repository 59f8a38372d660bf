"""A trainer as an application's settings describe it."""

from pinrec.parallel import Group
from serving.config import AppSettings
from streaming.trainer import Trainer


def trainer_of(settings: AppSettings, group: Group | None = None) -> Trainer:
    """The trainer; it has not looked at anything yet.

    Args:
        group: processes that train together, each with a trainer of the same settings; None = this one alone.
    """
    return Trainer(
        state=settings.state,
        kafka=settings.local_kafka,
        vocabulary=settings.vocabulary,
        model=settings.model,
        training=settings.training,
        generation=settings.generation,
        trainer=settings.trainer,
        gate=settings.gate,
        pinned=settings.pinned_version,
        split=settings.serving.split,
        group=group,
    )
