import numpy as np
import pytest
import torch

from benchmarks.gpu.arrivals import poisson, serve
from benchmarks.gpu.batch import NOW, Batch, LargeModel, random_request
from benchmarks.gpu.command import main
from benchmarks.gpu.measure import QUICK, Scale, measure
from pinrec.config import ModelConfig

CONFIG = ModelConfig(width=16, layers=2, heads=2, history=6, stride=1, dropout=0)
STEPS = 3


@pytest.fixture(scope="module")
def large():
    return LargeModel(CONFIG, 50, torch.device("cpu"))


def requests(large, count, events=6):
    rng = np.random.default_rng(0)
    return [random_request(rng, 50, events, large.vocabulary) for _ in range(count)]


def test_a_request_is_answered_the_same_alone_and_in_a_batch_that_is_not_full(large):
    asked = requests(large, 3)
    together = Batch(large, 4, 6, STEPS, graph=False)(asked)
    assert together.shape == (3, STEPS * large.embeddings, CONFIG.width)
    assert together.norm(dim=-1).numpy() == pytest.approx(1, abs=1e-2)
    alone = Batch(large, 1, 6, STEPS, graph=False)
    for request, found in zip(asked, together, strict=True):
        torch.testing.assert_close(alone([request])[0], found, atol=0.03, rtol=0)


def test_a_shorter_history_is_not_mixed_with_what_is_behind_it(large):
    batch = Batch(large, 1, 6, STEPS, graph=False)
    (request,) = requests(large, 1)
    short = type(request)(request.item, request.action, request.surface, request.timestamp, 4)
    other = request.item.copy()
    other[4:] = (other[4:] + 1) % 50
    changed = type(request)(other, request.action, request.surface, request.timestamp, 4)
    torch.testing.assert_close(batch([short]), batch([changed]), atol=0.03, rtol=0)
    assert not torch.allclose(batch([short]), batch([request]), atol=0.03)


def test_it_is_what_the_model_makes_step_by_step(large):
    (request,) = requests(large, 1)
    made = Batch(large, 1, 6, 1, graph=False)([request])[0]
    model = large.model
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        times = torch.from_numpy(request.timestamp)[None]
        before = torch.cat((torch.full((1, 1), torch.nan, dtype=torch.float64), times[:, :-1]), 1)
        action, surface = torch.from_numpy(request.action)[None], torch.from_numpy(request.surface)[None]
        tokens = model.tokens(large.table_ND[request.item][None], action, surface, times, before)
        state = model(tokens)[:, -1]
        click = torch.tensor([[large.vocabulary.action_index["click"]]])
        pause = NOW - request.timestamp[-1]
        first = model.head(state, click, surface[:, -1:], torch.tensor([[pause + CONFIG.offsets_s[0]]]))
    torch.testing.assert_close(made[0], first[0, 0].float(), atol=0.03, rtol=0)


class Clock:
    """Time that passes only where it is told to."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now

    def pass_by(self, seconds):
        self.now += seconds


def test_batches_are_what_waits_and_latencies_run_from_the_arrival():
    clock, batches = Clock(), []

    def work(numbers):
        batches.append(numbers.tolist())
        clock.pass_by(0.1)

    served = serve(np.array([0.0, 0.01, 0.02, 0.03, 0.5]), work, 2, clock=clock, sleep=clock.pass_by)
    assert batches == [[0], [1, 2], [3], [4]]
    assert served.latencies_s.tolist() == pytest.approx([0.1, 0.19, 0.18, 0.27, 0.1])
    assert served.per_s == pytest.approx(5 / 0.6)
    assert not served.overrun


def test_what_comes_in_the_warm_up_is_not_counted():
    clock = Clock()
    moments = np.array([0.1, 1.2, 1.4])
    served = serve(moments, lambda _: clock.pass_by(0.05), 2, warm_up_s=1.0, clock=clock, sleep=clock.pass_by)
    assert served.latencies_s.tolist() == pytest.approx([0.05, 0.05])
    assert served.per_s == pytest.approx(2 / 0.45)


def test_a_rate_that_cannot_be_borne_is_given_up():
    clock = Clock()
    served = serve(np.arange(1_000) / 100, lambda _: clock.pass_by(1.0), 1, clock=clock, sleep=clock.pass_by)
    assert served.overrun
    assert served.batches < 5


def test_arrivals_have_their_rate():
    moments = poisson(1_000, 10, 0)
    assert len(moments) == pytest.approx(10_000, rel=0.05)
    assert (np.diff(moments) >= 0).all()
    assert 0 <= moments[0] < moments[-1] <= 10


def test_the_measure_runs_without_graphs_on_a_cpu(tmp_path):
    small = ModelConfig(width=8, layers=1, heads=1, history=4, stride=1, dropout=0)
    scale = Scale(small, 2, 20, (1, 4), seconds=0.2, warm_up_s=0.05, repeats=1)
    result = measure(torch.device("cpu"), scale, tmp_path, True, lambda *_: None)
    assert (result.id, result.unit, result.met) == ("P9", "requests/s", False)
    assert result.value > 0
    assert result.curve.x == sorted(result.curve.x)
    assert "no GPU" in result.protocol


def test_without_a_gpu_the_command_says_so(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["--quick", "--out", str(tmp_path)]) == 2
    assert "P9 needs a GPU, and torch finds none here" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
    assert QUICK.model.layers < 12
