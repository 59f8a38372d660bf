"""Every model trains on the device that it was made on. Tensors are stand-ins: no GPU is needed to see them mixed."""

import sys

import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from pinrec.baselines.sasrec import SASRec
from pinrec.contender import PinRec
from pinrec.parallel import Share
from pinrec.protocols import leave_one_out
from tests.unit.pinrec.baselines.test_fitting import MADE
from tests.unit.pinrec.small_split import random_user_log
from tests.unit.pinrec.test_pinrec_contender import recipe

GPU = "meta"  # stands for one: of the devices but the CPU only this one goes backward without a driver


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.setattr(nn.init, "trunc_normal_", lambda tensor, *_: nn.init.normal_(tensor))  # it asks for values
    monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda tensor: tensor.device.type == GPU))
    monkeypatch.setattr(sys.modules["torch.optim.adam"], "_device_dtype_check_for_fused", lambda *_: None)
    # Whoever makes a tensor elsewhere than on the default device, and mixes the two, gets an error.
    with FakeTensorMode(allow_non_fake_inputs=True), torch.device(GPU):
        yield


def devices(*tensors):
    return {tensor.device.type for tensor in tensors if tensor is not None}


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize(("kind", "config"), MADE.values(), ids=MADE)
def test_a_step_of_a_baseline(kind, config):
    model = kind(leave_one_out(random_user_log()), config, 0)
    loss, predictions = model.loss(model.trainable(), np.random.default_rng(0))
    assert predictions
    assert loss.requires_grad
    assert devices(loss, *model._module.parameters()) == {GPU}


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize(
    "changed",
    [
        {"training": {"softmax": "sampled"}},
        {"training": {"softmax": "exact", "averaging": 0.9}},
        {"model": {"ranking": True}},
        {"training": {"fine_tune_share": 1.0}},
    ],
    ids=["sampled softmax", "exact softmax", "ranking head", "impressions"],
)
def test_a_step_of_pinrec(changed, monkeypatch):
    monkeypatch.setattr(Share, "sum_gradients", lambda *_: 0.0)  # a stand-in has no value to report
    base = recipe()
    kinds = {name: getattr(base, name).model_copy(update=values) for name, values in changed.items()}
    model = PinRec(leave_one_out(random_user_log()), type(base)(**{**vars(base), **kinds}), seed=0)
    learner, events, catalogue = model.learner, model._split.training_events, model._split.log.catalogue
    assert learner.fit(events, catalogue, steps=2).steps == 2
    moments = [moment for of in learner.optimizer.state.values() for moment in of.values()]
    gradients = [weight.grad for weight in learner.model.parameters()]
    assert moments
    assert devices(*learner.average.values(), *gradients, *moments) == {GPU}


@pytest.mark.usefixtures("gpu")
def test_a_tensor_left_on_the_cpu_is_seen():
    model = SASRec(leave_one_out(random_user_log()), MADE["sasrec, bce"][1], 0)
    model.model.position.weight = torch.nn.Parameter(model.model.position.weight.cpu())
    with pytest.raises(RuntimeError, match="device"):
        model.loss(model.trainable(), np.random.default_rng(0))
