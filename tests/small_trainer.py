"""A trainer small enough for every test, that knows no Kafka: what is archived is all that training needs."""

import torch

import streaming.trainer
import streaming.training_catalogue
from pinrec.config import GenerationConfig, ModelConfig, TrainingConfig, Vocabulary
from streaming.checkpoint import TrainerFolder
from streaming.config import KafkaSettings, TrainerSettings
from streaming.publisher import PublishError
from streaming.trainer import Trainer

MODEL = ModelConfig(width=8, layers=1, heads=2, history=16, stride=8, hash_buckets=64, id_width=8, bag_buckets=16)
TRAINING = TrainingConfig(
    batch_users=2, window=8, uniform_negatives=8, initial_steps=4, round_steps=3, averaging=0.9, replay_share=0.3
)
NOWHERE = KafkaSettings(bootstrap="127.0.0.1:9")


class EmptyTopic:
    """An items topic that says nothing: the catalogue is what the events name."""

    def __init__(self, *_):
        self.items, self.complete = {}, True

    def update(self):
        return False


def nobody(*_):
    raise PublishError("nobody listens")


def without_kafka(set_attribute=setattr):
    """Take Kafka away from trainers; for a test by its monkeypatch's setattr."""
    set_attribute(streaming.trainer, "EventPublisher", nobody)
    set_attribute(streaming.training_catalogue, "CatalogueView", EmptyTopic)


def new_trainer(state, model=MODEL, training=TRAINING, pinned=None, split=(), group=None, **settings):
    """One that has not resumed."""
    torch.set_num_threads(1)
    return Trainer(
        state=state,
        kafka=NOWHERE,
        vocabulary=Vocabulary(),
        model=model,
        training=training,
        generation=GenerationConfig(),
        trainer=TrainerSettings(**{"min_events": 10, "holdout_share": 0.3, "holdout_events": 10} | settings),
        pinned=pinned,
        split=split,
        group=group,
    )


def trainer(state, **options):
    """One that has just started."""
    started = new_trainer(state, **options)
    started.resume()
    return started


def checkpoint(state):
    """What training would go on from."""
    return TrainerFolder(state.trainer).load()
