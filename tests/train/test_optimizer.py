"""Optimisers get the constants of the config, from whichever package is there."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
import torch
from torch import nn
from transformers import Adafactor

from diffalign.methods.config import TrainConfig
from diffalign.train.optimizer import make_average, make_optimizer
from tests.checked import checked

CONSTANTS = {"learning_rate": 1e-3, "adam_beta1": 0.8, "adam_beta2": 0.95, "adam_weight_decay": 0.1, "adam_epsilon": 1e-6}
GIVEN = {"lr": 1e-3, "betas": (0.8, 0.95), "weight_decay": 0.1, "eps": 1e-6}


class Stub:
    """Remembers what an optimiser was given."""

    def __init__(self, parameters, **constants):
        self.parameters, self.constants = parameters, constants


@pytest.fixture
def present(monkeypatch):
    """Return a function that makes packages count as installed, with stubs for their optimisers, and all others not."""

    def install(*packages):
        monkeypatch.setattr("diffalign.methods.packages.find_spec", lambda name: name if name in packages else None)
        for package in packages:
            parent, module = ModuleType(package), ModuleType(f"{package}.optim")
            for name in ("AdamW8bit", "PagedAdamW8bit"):
                setattr(module, name, type(name, (Stub,), {"__module__": package}))
            parent.optim = module  # pyright: ignore[reportAttributeAccessIssue]
            monkeypatch.setitem(sys.modules, package, parent)
            monkeypatch.setitem(sys.modules, f"{package}.optim", module)

    return install


def made(**values):
    parameters = [nn.Parameter(torch.ones(2, 3))]
    return make_optimizer(checked(TrainConfig(dataset_name="pairs", **CONSTANTS, **values)), parameters), parameters


@pytest.mark.parametrize(
    ("values", "packages", "expected"),
    [
        ({"optimizer": "adamw_8bit"}, ["bitsandbytes"], ("bitsandbytes", "AdamW8bit")),
        ({"optimizer": "adamw_8bit"}, ["bitsandbytes", "torchao"], ("bitsandbytes", "AdamW8bit")),
        ({"optimizer": "adamw_8bit"}, ["torchao"], ("torchao", "AdamW8bit")),
        ({"use_8bit_adam": True}, ["bitsandbytes"], ("bitsandbytes", "AdamW8bit")),
        ({"use_8bit_adam": True}, ["torchao"], ("torchao", "AdamW8bit")),
        ({"optimizer": "paged_adamw_8bit"}, ["bitsandbytes", "torchao"], ("bitsandbytes", "PagedAdamW8bit")),
    ],
)
def test_8_bit_optimisers_come_from_the_package_that_is_there(present, values, packages, expected):
    present(*packages)
    optimizer, parameters = made(**values)
    assert (type(optimizer).__module__, type(optimizer).__name__) == expected
    assert optimizer.parameters is parameters
    assert optimizer.constants == GIVEN


def test_adamw_is_pytorchs():
    optimizer, _ = made()
    assert type(optimizer) is torch.optim.AdamW
    assert {name: optimizer.param_groups[0][name] for name in GIVEN} == GIVEN


def test_adafactor_steps_at_the_rate_it_is_given():
    optimizer, (parameter,) = made(optimizer="adafactor")
    assert isinstance(optimizer, Adafactor)
    parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    # Equal gradients, so each entry's update is the gradient over its root mean square, 1; weight decay comes first: 1 - 1e-3 * 0.1.
    torch.testing.assert_close(parameter.data, torch.full((2, 3), 1.0 - 1e-4 - 1e-3))


@pytest.mark.parametrize(("drives", "after"), [(False, 0.15), (True, 0.15 * 0.85)])
def test_the_moving_average_keeps_the_share_of_its_decay(drives, after):
    # As a driver it follows from the first step: 0.85 of the way from 0 to 1, and then to 0. Else the first step copies, and the second
    # keeps min(0.15, diffusers' 2 / 11).
    parameter = nn.Parameter(torch.zeros(1))
    average = make_average(TrainConfig(dataset_name="pairs", use_ema=True, ema_decay=0.15), [parameter], drives=drives)
    for value in (1.0, 0.0):
        parameter.data.fill_(value)
        average.step([parameter])
    assert average.shadow_params[0].item() == pytest.approx(after)


@pytest.mark.parametrize(("on_gpu", "precision", "fused"), [(True, "bf16", True), (True, "fp16", None), (False, "bf16", None)])
def test_adamw_is_one_kernel_on_a_gpu_unless_the_scaler_skips_overflows(on_gpu, precision, fused, monkeypatch):
    monkeypatch.setattr(torch.Tensor, "is_cuda", on_gpu, raising=False)
    groups = [{"params": [nn.Parameter(torch.ones(2))]}, {"params": [nn.Parameter(torch.ones(3))], "lr": 1e-4}]
    optimizer = make_optimizer(TrainConfig(dataset_name="pairs", mixed_precision=precision), groups)
    assert [group["fused"] for group in optimizer.param_groups] == [fused, fused]
