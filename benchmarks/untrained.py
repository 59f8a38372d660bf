"""Models that nobody trained."""

from torch import nn

from pinrec.config import ModelConfig, Vocabulary
from pinrec.model import PinRecModel


def untrained(config: ModelConfig, vocabulary: Vocabulary) -> PinRecModel:
    """Random weights in every part, from torch's generator.

    A model with a residual tower begins with some parts at zero: its embeddings for all outcomes and offsets would be
    one and the same, and what is measured the search with one.
    """
    model = PinRecModel(config, vocabulary).eval()
    for part in model.modules():
        if isinstance(part, nn.Linear) and not part.weight.any():
            part.reset_parameters()
    return model
