"""The Serve application: what a deploy file's `import_path: serving.app:build` names."""

from typing import Any, Final

from ray import serve
from ray.serve.config import BackpressureConfig

from serving.config import AppSettings
from serving.gateway import Gateway
from serving.ingestor import IngestorDeployment
from serving.recommender import Recommender
from serving.tokens import ensure_token
from serving.trainer import TrainerDeployment

_OTHERS: Final = 256
"""Requests in a Gateway beside its queries: events on their way to Kafka, and queries that are just being refused."""


def build(settings: AppSettings) -> serve.Application:
    """Gateway and Recommender with a model each, Ingestor -> Recommender, and the Trainer beside them."""
    state = settings.state.model_copy(update={"root": settings.state.root.resolve()})
    # `serve run` starts no broker; `pinrec broker` does.
    settings = settings.model_copy(update={"state": state, "kafka": settings.local_kafka})
    ensure_token(settings)
    recommender = _bind(Recommender, settings)
    ingestor = _bind(IngestorDeployment, settings, recommender)
    # Serve lets in more queries than may wait, so that it is the scheduler who refuses: it knows how long they waited.
    limits = {
        "max_ongoing_requests": settings.serving.most_queries + _OTHERS,
        "backpressure_config": BackpressureConfig(retry_after_s=1),
    }
    return _bind(Gateway, settings, recommender, ingestor, _bind(TrainerDeployment, settings), **limits)


def _bind(deployment: Any, *args: Any, **options: Any) -> serve.Application:
    """Serve's decorator keeps the class's type, which has no `bind` for a type checker."""
    application: serve.Application = deployment.options(**options).bind(*args)
    return application
