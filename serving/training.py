"""A trainer as an application's settings describe it."""

from serving.config import AppSettings
from streaming.trainer import Trainer


def trainer_of(settings: AppSettings) -> Trainer:
    """The trainer; it has not looked at anything yet."""
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
    )
