"""What serving computes equals what was trained, whatever the shape of the model and of the batch."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pinrec.config import ModelConfig, Vocabulary
from pinrec.fused import FusedModel
from pinrec.model import PinRecModel, previous_timestamps

VOCABULARY = Vocabulary()
CLOSE = {"atol": 2e-5, "rtol": 2e-4}


def model_of(seed: int = 0, **config: object) -> PinRecModel:
    """Weights that are all different from how they begin: norms are not 1, biases not 0."""
    shape: dict[str, object] = {"history": 24, "stride": 8, "hash_buckets": 64, "bag_buckets": 64}
    torch.manual_seed(seed)
    model = PinRecModel(ModelConfig(**(shape | config)), VOCABULARY).eval().requires_grad_(False)
    for weight in model.parameters():
        weight.add_(0.1 * torch.randn_like(weight))
    return model


def events(rows: int, length: int, width: int) -> tuple[torch.Tensor, ...]:
    timestamp = 1.7e9 + (1e4 * torch.rand(rows, length, dtype=torch.float64)).cumsum(1)
    return (
        torch.nn.functional.normalize(torch.randn(rows, length, width), dim=-1),
        torch.randint(len(VOCABULARY.actions), (rows, length)),
        torch.randint(len(VOCABULARY.surfaces), (rows, length)),
        timestamp,
        previous_timestamps(timestamp),
    )


@pytest.mark.parametrize("config", [{}, {"layers": 1, "width": 32, "heads": 4}, {"ranking": True, "heads": 1}])
def test_tokens_and_embeddings_are_those_of_the_model(config: dict[str, object]) -> None:
    model = model_of(**config)
    fused = FusedModel(model)
    item, action, surface, timestamp, previous = events(3, 5, model.config.width)
    if model.ranking is not None:
        action[0, 1] = -1  # nobody has met it yet
    torch.testing.assert_close(
        fused.tokens(item, action, surface, timestamp, previous),
        model.tokens(item, action, surface, timestamp, previous),
        **CLOSE,
    )
    asked = (
        torch.randint(-1, len(VOCABULARY.actions), (3, 7)),
        torch.randint(-1, len(VOCABULARY.surfaces), (3, 7)),
        torch.tensor([-1.0, 0.0, 1.0, 30.0, 3_600.0, 86_400.0, 1e9]).expand(3, 7),
    )
    h_BD = torch.randn(3, model.config.width)
    torch.testing.assert_close(fused.head(h_BD, *asked), model.head(h_BD, *asked), **CLOSE)


@given(
    lengths=st.lists(st.integers(1, 20), min_size=1, max_size=4),
    news=st.lists(st.integers(1, 3), min_size=1, max_size=3),
    kept=st.sampled_from([torch.float32, torch.bfloat16, torch.int8]),
)
@settings(max_examples=30, deadline=None)
def test_states_are_those_of_the_model_however_they_come_about(
    lengths: list[int], news: list[int], kept: torch.dtype
) -> None:
    model = model_of(seed=1)
    fused = FusedModel(model)
    x_BLD = model.tokens(*events(len(lengths), max(lengths) + sum(news), model.config.width))
    length_B = torch.tensor(lengths)
    row_B = torch.arange(len(lengths))
    h_BLD, cache = fused.prefill(x_BLD[:, : max(lengths)], length_B, kept)
    expected, plain = model.prefill(x_BLD[:, : max(lengths)], length_B, kept)
    # A key that lies between two numbers of the coarser type may be rounded either way.
    close = CLOSE if kept == torch.float32 else {"atol": 2e-2 if kept == torch.bfloat16 else 6e-2, "rtol": 1e-2}
    torch.testing.assert_close(h_BLD[row_B, length_B - 1], expected[row_B, length_B - 1], **close)
    at = max(lengths)
    for more in news:
        x_BND = x_BLD[:, at : at + more]
        torch.testing.assert_close(fused.extend(x_BND, cache, kept), model.extend(x_BND, plain, kept), **close)
        at += more
    assert cache.length_B.tolist() == plain.length_B.tolist() == [length + sum(news) for length in lengths]


def test_histories_longer_than_the_configured_ones_have_angles_too() -> None:
    model = model_of()
    x_BLD = torch.randn(1, 4 * model.config.history, model.config.width)
    length_B = torch.tensor([x_BLD.shape[1]])
    torch.testing.assert_close(
        FusedModel(model).prefill(x_BLD, length_B)[0], model.prefill(x_BLD, length_B)[0], **CLOSE
    )


def test_a_token_of_zeros_does_no_harm() -> None:
    model = model_of()
    h_BLD, _ = FusedModel(model).prefill(torch.zeros(1, 2, model.config.width), torch.tensor([2]))
    assert all(math.isfinite(x) for x in h_BLD.flatten().tolist())
