"""What serving computes equals what was trained, whatever the shape of the model and of the batch."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pinrec.arena import POSITIONS, Arena
from pinrec.config import ModelConfig, Vocabulary
from pinrec.few import MOST
from pinrec.fused import FusedModel
from pinrec.generation import Aims, Moment, generated
from pinrec.model import PinRecModel, previous_timestamps

VOCABULARY = Vocabulary()
CLOSE = {"atol": 2e-5, "rtol": 2e-4}
CLOSE_KEPT = {"atol": 6e-2, "rtol": 1e-2}  # what lies between two numbers of the coarser type may be rounded either way


def model_of(seed: int = 0, **config: object) -> PinRecModel:
    """Weights that are all different from how they begin: norms are not 1, biases not 0."""
    shape: dict[str, object] = {
        "history": 24, "stride": 8, "local_window": 7, "hash_buckets": 64, "bag_buckets": 64,
    }  # fmt: skip
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


@pytest.mark.parametrize("kept", [torch.bfloat16, torch.float32, torch.int8], ids=str)
@pytest.mark.parametrize("lengths", [(3,), (40, 1, 70), (32, 64, 33)], ids=str)
@pytest.mark.parametrize(("head_width", "window"), [(32, 0), (24, 1), (24, 35), (6, 32), (6, 2), (6, 71)])
def test_what_an_arena_keeps_is_gone_on_from_where_it_lies_and_in_one_piece(
    lengths: tuple[int, ...], kept: torch.dtype, head_width: int, window: int
) -> None:
    model = model_of(seed=2, history=96, heads=2, width=2 * head_width, local_window=window)
    fused = FusedModel(model)
    x_BLD = model.tokens(*events(len(lengths), max(lengths) + 3, model.config.width))
    length_B = torch.tensor(lengths)
    _, cache = model.prefill(x_BLD[:, :-3], length_B, kept)
    arena = Arena(model.config, 1 << 22, kept)
    held = [arena.take(-(-length // POSITIONS)) for length in lengths]
    close = CLOSE if kept == torch.float32 else CLOSE_KEPT
    arena.store(held, cache, [0] * len(lengths), list(lengths))
    paged = arena.gather(held, length_B, 1)
    for at in (-3, -2):
        expected = model.extend(x_BLD[:, at : at + 1 or None], cache, kept)
        torch.testing.assert_close(fused.extend(x_BLD[:, at : at + 1 or None], paged, kept), expected, **close)
    seen = torch.arange(cache.capacity) < cache.length_B[:, None]
    for whole, plain in ((paged.key, cache.key), (paged.value, cache.value)):
        own = whole[:, :, :, : cache.capacity].transpose(2, 3)[:, seen[:, : whole.shape[3]]]
        torch.testing.assert_close(own, plain.transpose(2, 3)[:, seen], **close)
    last = x_BLD[:, -1:]
    torch.testing.assert_close(fused.extend(last, paged, kept), model.extend(last, cache, kept), **close)


@pytest.mark.parametrize("kept", [torch.bfloat16, torch.int8], ids=str)
def test_what_many_new_tokens_add_to_kept_pages_is_kept_too(kept: torch.dtype) -> None:
    """More than the compiled code takes: the pages are put in one piece first."""
    model = model_of(seed=4, history=64)
    fused, rows, known, more = FusedModel(model), 40, 20, 16
    assert rows * more > MOST
    x_BLD = model.tokens(*events(rows, known + more, model.config.width))
    _, whole = model.prefill(x_BLD, torch.full((rows,), known + more), kept)
    _, cache = model.prefill(x_BLD[:, :known], torch.full((rows,), known), kept)
    arena = Arena(model.config, 1 << 24, kept)
    held = [arena.take(2) for _ in range(rows)]
    arena.store(held, cache, [0] * rows, [known] * rows)
    paged = arena.gather(held, torch.full((rows,), known), more)
    fused.extend(x_BLD[:, known:], paged, kept)
    arena.store(held, paged, [known] * rows, [known + more] * rows)
    again = arena.gather(held, torch.full((rows,), known + more), 1)
    torch.testing.assert_close(again.key[:, :, :, : known + more], whole.key, **CLOSE_KEPT)
    torch.testing.assert_close(again.value[:, :, :, : known + more], whole.value, **CLOSE_KEPT)


@pytest.mark.parametrize("kept", [torch.bfloat16, torch.int8], ids=str)
def test_candidates_are_ranked_by_kept_pages_as_by_whole_histories(kept: torch.dtype) -> None:
    model = model_of(seed=5, ranking=True)
    x_BLD = model.tokens(*events(2, 20, model.config.width))
    length_B = torch.tensor([20, 7])
    _, cache = model.prefill(x_BLD, length_B, kept)
    arena = Arena(model.config, 1 << 22, kept)
    held = [arena.take(1), arena.take(1)]
    arena.store(held, cache, [0, 0], [20, 7])
    candidates = torch.randn(2, 5, model.config.width)
    paged = arena.gather(held, length_B, 1)
    expected = model.backbone.attend(candidates, cache)
    torch.testing.assert_close(model.backbone.attend(candidates, paged), expected, **CLOSE)


@pytest.mark.parametrize("rows", [1, 3, 40])
def test_all_steps_are_those_of_the_model(rows: int) -> None:
    """Forty rows make more embeddings than the compiled code takes."""
    model = model_of(seed=3)
    fused = FusedModel(model)
    x_BLD = model.tokens(*events(rows, 9, model.config.width))
    length_B = torch.randint(1, 10, (rows,))
    last_B = 1.7e9 + 1e3 * torch.rand(rows, dtype=torch.float64)
    moment = Moment(last_B, last_B + 1e4 * torch.rand(rows, dtype=torch.float64), torch.randint(3, (rows,)))
    offset_E = torch.tensor([60.0, math.nan, 3_600.0, 60.0] * 4, dtype=torch.float64)
    aims = Aims(
        torch.randint(-1, len(VOCABULARY.actions), (3, rows, len(offset_E))),
        torch.randint(-1, len(VOCABULARY.surfaces), (rows,)),
        offset_E,
        torch.randint(len(VOCABULARY.actions), (3, rows)),
        2,
    )
    ends = []
    for one in (model, fused):
        h_BLD, cache = one.prefill(x_BLD, length_B)
        ends.append(generated(one, h_BLD[torch.arange(rows), length_B - 1], cache, moment, aims))
        assert (cache.length_B == length_B + 2).all()
    torch.testing.assert_close(ends[1], ends[0], **CLOSE)
