import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pinrec.config import ModelConfig, Vocabulary
from pinrec.model import PinRecModel

CONFIG = ModelConfig(width=16, layers=2, heads=2, local_window=7, hash_buckets=64, bag_buckets=64, id_width=8)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return PinRecModel(CONFIG, Vocabulary()).eval()


def states(model, x, lengths):
    """Each row's state at its last position, one row at a time, without padding or cache."""
    return torch.cat([model(x[b : b + 1, :n])[:, -1] for b, n in enumerate(lengths)])


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 24), min_size=1, max_size=5), st.integers(0, 20), st.integers(0, 999))
def test_decoding_token_by_token_equals_encoding_the_whole(model, lengths, more, seed):
    torch.manual_seed(seed)
    x_BLD = torch.randn(len(lengths), max(lengths) + more, CONFIG.width)
    length_B = torch.tensor(lengths)
    with torch.no_grad():
        _, cache = model.prefill(x_BLD[:, : max(lengths)], length_B)
        for step in range(more):
            h_BD = model.decode(x_BLD[torch.arange(len(lengths)), length_B + step], cache)
            torch.testing.assert_close(
                h_BD, states(model, x_BLD, [n + step + 1 for n in lengths]), atol=2e-5, rtol=2e-4
            )
    assert cache.length_B.tolist() == [n + more for n in lengths]


@torch.no_grad()
@pytest.mark.parametrize(("window", "layers"), [(0, 2), (1, 2), (4, 3), (4, 1), (20, 2)])
def test_the_last_layer_sees_all_events_and_the_others_the_latest(window, layers):
    """Against every position's attention by itself, written out."""
    torch.manual_seed(1)
    config = ModelConfig(**CONFIG.model_dump() | {"local_window": window, "layers": layers})
    backbone = PinRecModel(config, Vocabulary()).eval().backbone
    x_LD = torch.randn(12, config.width)
    expected = x_LD
    for layer, block in enumerate(backbone.blocks):
        looks_back = window if window and layer < layers - 1 else 12
        q, k, v, gate = block.split(expected[None], backbone.rotary.angles(torch.arange(12)))
        rows = []
        for at in range(12):
            seen = slice(max(0, at + 1 - looks_back), at + 1)
            score_HL = (q[0, :, at, None] * k[0, :, seen]).sum(-1) / q.shape[-1] ** 0.5
            rows.append((score_HL.softmax(-1)[..., None] * v[0, :, seen]).sum(1))
        expected = block.join(expected[None], torch.stack(rows, 1)[None], gate)[0]
    torch.testing.assert_close(backbone(x_LD[None])[0], backbone.norm(expected), atol=2e-5, rtol=2e-4)


@torch.no_grad()
def test_what_stands_in_the_padding_changes_nothing(model):
    x = torch.randn(2, 6, CONFIG.width)
    length = torch.tensor([6, 3])
    h, cache = model.prefill(x, length)
    soiled = x.clone()
    soiled[1, 3:] = 1e3
    h_soiled, cache_soiled = model.prefill(soiled, length)
    torch.testing.assert_close(h[1, :3], h_soiled[1, :3])
    token = torch.randn(2, CONFIG.width)
    torch.testing.assert_close(model.decode(token, cache), model.decode(token, cache_soiled))


@torch.no_grad()
def test_rewinding_undoes_decode_steps(model):
    x, length = torch.randn(2, 5, CONFIG.width), torch.tensor([5, 2])
    _, cache = model.prefill(x, length)
    token = torch.randn(2, CONFIG.width)
    expected = model.decode(token, cache)
    cache.rewind(length)
    model.decode(torch.randn(2, CONFIG.width), cache)
    cache.rewind(length)
    torch.testing.assert_close(model.decode(token, cache), expected)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 24), min_size=1, max_size=5), st.integers(1, 7), st.integers(0, 3), st.integers(0, 999))
@torch.no_grad()
def test_candidates_attend_as_if_each_alone_came_next_and_leave_the_cache_alone(model, lengths, candidates, room, seed):
    torch.manual_seed(seed)
    length_B = torch.tensor(lengths)
    x_BLD = torch.randn(len(lengths), max(lengths), CONFIG.width)
    candidate_BCD = torch.randn(len(lengths), candidates, CONFIG.width)
    _, cache = model.prefill(x_BLD, length_B)
    cache.reserve(cache.capacity + room)
    before = cache.key.clone(), cache.value.clone(), cache.length_B.clone()
    h_BCD = model.backbone.attend(candidate_BCD, cache)
    for kept, was in zip((cache.key, cache.value, cache.length_B), before, strict=True):
        assert torch.equal(kept, was)
    for c in range(candidates):
        _, alone = model.prefill(x_BLD, length_B)
        torch.testing.assert_close(h_BCD[:, c], model.decode(candidate_BCD[:, c], alone), atol=2e-5, rtol=2e-4)


@torch.no_grad()
def test_a_candidate_sees_no_more_of_its_history_than_it_may(model):
    x, length = torch.randn(2, 9, CONFIG.width), torch.tensor([9, 6])
    candidate = torch.randn(2, 3, CONFIG.width)
    seen = torch.tensor([[1, 9, 4], [6, 0, 2]])
    _, cache = model.prefill(x, length)
    h = model.backbone.attend(candidate, cache, seen)
    for b in range(2):
        for c in range(3):
            whole = torch.cat((x[b, : seen[b, c]], candidate[b, c][None]))[None]
            torch.testing.assert_close(h[b, c], model(whole)[0, -1], atol=2e-5, rtol=2e-4)


def test_a_cache_of_other_shapes_is_refused(model):
    _, cache = model.prefill(torch.randn(2, 3, CONFIG.width), torch.tensor([3, 3]))
    with pytest.raises(AssertionError):
        model.decode(torch.randn(3, CONFIG.width), cache)
    with pytest.raises(AssertionError):
        cache.rewind(torch.tensor([4, 3]))
