import torch

from benchmarks.untrained import untrained
from pinrec.config import ModelConfig, Vocabulary


@torch.no_grad()
def test_every_outcome_and_offset_has_an_embedding_of_its_own():
    torch.manual_seed(0)
    model = untrained(ModelConfig(), Vocabulary())
    outcome, offset = torch.tensor([[3, 4, 3]]), torch.tensor([[0.0, 0.0, 180.0]])
    embeddings = model.head(torch.randn(1, 64), outcome, torch.full((1, 3), -1), offset)[0]
    assert torch.pdist(embeddings).min() > 1e-3
