"""The Serve application: what a deploy file's `import_path: serving.app:build` names."""

from typing import Any

from ray import serve

from serving.config import AppSettings
from serving.gateway import Gateway
from serving.ingestor import IngestorDeployment
from serving.recommender import Recommender
from serving.tokens import ensure_token
from serving.trainer import TrainerDeployment


def build(settings: AppSettings) -> serve.Application:
    """Gateway and Recommender with a model each, Ingestor -> Recommender, and the Trainer beside them."""
    state = settings.state.model_copy(update={"root": settings.state.root.resolve()})
    # `serve run` starts no broker; `pinrec broker` does.
    settings = settings.model_copy(update={"state": state, "kafka": settings.local_kafka})
    ensure_token(settings)
    recommender = _bind(Recommender, settings)
    ingestor = _bind(IngestorDeployment, settings, recommender)
    return _bind(Gateway, settings, recommender, ingestor, _bind(TrainerDeployment, settings))


def _bind(deployment: Any, *args: Any) -> serve.Application:
    """Serve's decorator keeps the class's type, which has no `bind` for a type checker."""
    application: serve.Application = deployment.bind(*args)
    return application
