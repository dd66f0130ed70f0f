"""LoRA layers give peft's numbers without its dispatch, and a block in which they are off or fused leaves nothing behind."""

from __future__ import annotations

import contextlib
import copy

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners import lora
from torch import nn

from diffalign.models.lora_layers import LoraLinear, Switch, fused, without_dispatch


def network(names=("default",), **options):
    """Return two linear layers with adapters that change them, as peft makes them."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4, bias="lora_bias" in options))
    for name in names:
        settings = {"r": 2, "lora_alpha": 1, "target_modules": ["0", "1"], **options}
        vars(model).pop("peft_config", None)  # of which peft warns
        model = inject_adapter_in_model(LoraConfig(**settings), model, adapter_name=name)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    for layer in model:
        layer.set_adapter(list(names))
    return model


def bare(model):
    """Return a copy whose layers are called without peft's dispatch."""
    other = copy.deepcopy(model)
    without_dispatch(other)
    assert [type(layer) for layer in other] == [LoraLinear, LoraLinear]
    return other


def gradients(model):
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


@pytest.mark.parametrize("shape", [(3, 6), (2, 7, 6), (2, 3, 4, 6)])
@pytest.mark.parametrize("alpha", [1, 2, 4])
def test_outputs_and_gradients_are_those_of_peft_to_the_bit(shape, alpha):
    model = network(lora_alpha=alpha)
    other, x = bare(model), torch.randn(shape)
    expected, outputs = model(x), other(x)
    expected.square().mean().backward()
    outputs.square().mean().backward()
    assert torch.equal(outputs, expected)
    assert len(gradients(other)) == len(gradients(model)) > 0
    for own, right in zip(gradients(other), gradients(model), strict=True):
        torch.testing.assert_close(own, right, rtol=1e-6, atol=1e-7)


def test_under_autocast_the_sum_is_rounded_once():
    model = network()
    other, x = bare(model), torch.randn(64, 6)
    with torch.autocast("cpu", torch.bfloat16):
        peft, own = model[0](x), other[0](x)
    layer, half = model[0], lambda value: value.bfloat16().double()
    base = torch.nn.functional.linear(half(x), half(layer.base_layer.weight), half(layer.base_layer.bias)).bfloat16()
    below = (half(x) @ half(layer.lora_A["default"].weight).T).bfloat16()
    right = base.double() + 0.5 * below.double() @ half(layer.lora_B["default"].weight).T
    assert own.dtype == torch.bfloat16
    assert (own.double() - right).abs().mean() < (peft.double() - right).abs().mean()
    assert ((own.double() - right).abs() <= right.abs() * 2**-8 + 1e-6).all()


@pytest.mark.parametrize(
    ("names", "options"),
    [(("a", "b"), {}), (("a",), {"use_dora": True}), (("a",), {"lora_dropout": 0.5}), (("a",), {"lora_bias": True})],
    ids=["two adapters", "DoRA", "dropout", "bias"],
)
def test_other_adapters_are_called_as_peft_calls_them(names, options):
    model = network(names, **options)
    other, x = bare(model), torch.randn(3, 6)
    torch.manual_seed(1)
    expected = model(x)
    torch.manual_seed(1)
    assert torch.equal(other(x), expected)


def test_scales_merging_and_switches_of_peft_are_followed():
    model = network()
    other, x = bare(model), torch.randn(3, 6)
    for both in (lambda layer: layer.set_scale("default", 3.0), lambda layer: layer.merge(), lambda layer: layer.unmerge()):
        for layer in (*model, *other):
            both(layer)
        torch.testing.assert_close(other(x), model(x), rtol=0, atol=1e-6)
    for layer in (*model, *other):
        layer.enable_adapters(False)
    assert torch.equal(other(x), model(x))


def test_a_hook_on_a_layer_inside_is_called():
    other, seen = bare(network()), []
    other[0].base_layer.register_forward_hook(lambda *_: seen.append("base"))
    other[0].lora_A["default"].register_forward_pre_hook(lambda *_: seen.append("down"))
    other(torch.randn(3, 6))
    assert seen == ["base", "down"]


def test_convolutions_and_layers_of_other_kinds_stay_peft_s():
    model = inject_adapter_in_model(LoraConfig(r=2, target_modules=["0"]), nn.Sequential(nn.Conv2d(3, 4, 1)))
    without_dispatch(model)
    assert type(model[0]) is lora.Conv2d


@pytest.mark.parametrize("dispatch", [True, False])
def test_switched_off_is_the_base_and_on_again_after_an_error(dispatch):
    model, x = network(), torch.randn(3, 6)
    base = nn.Sequential(model[0].base_layer, model[1].base_layer)
    other = model if dispatch else bare(model)
    expected, switch = other(x), Switch(other)
    with contextlib.suppress(RuntimeError), switch():
        assert torch.equal(other(x), base(x))
        raise RuntimeError("stop")
    assert torch.equal(other(x), expected)
    assert all(parameter.requires_grad for name, parameter in other.named_parameters() if "lora_" in name)


def test_fused_draws_the_same_and_the_weights_come_back_to_the_bit():
    model, x = bare(network()), torch.randn(3, 6)
    before, expected = copy.deepcopy(model.state_dict()), model(x)
    with contextlib.suppress(RuntimeError), fused(model):
        assert not torch.equal(model[0].base_layer.weight, before["0.base_layer.weight"])
        torch.testing.assert_close(model(x), expected)
        raise RuntimeError("stop")
    assert torch.equal(model(x), expected)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_fused_leaves_alone_what_is_off_in_half_precision_or_called_by_something_else():
    for change in (
        lambda model: [layer.enable_adapters(False) for layer in model],
        lambda model: model.bfloat16(),
        lambda model: [vars(layer).update(forward=layer.forward) for layer in model],
        lambda model: [layer.base_layer.register_forward_pre_hook(lambda *_: None) for layer in model],
    ):
        model = network()
        change(model)
        weight = model[0].base_layer.weight.data_ptr()
        with fused(model):
            assert (model[0].base_layer.weight.data_ptr(), model[0].merged) == (weight, False)


def test_fused_leaves_alone_a_layer_whose_sum_is_not_finite():
    model = network()
    model[0].lora_B["default"].weight.data.fill_(torch.inf)
    with fused(model):
        assert (model[0].merged, model[1].merged) == (False, True)
