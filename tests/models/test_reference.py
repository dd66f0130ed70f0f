"""References score without gradient, in eval mode, and leave the network as they found it."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from functools import partial

import pytest
import torch
from torch import nn

from diffalign.core.types import Batch, Noised, Query
from diffalign.models.adapters import add_lora, trainable
from diffalign.models.diffusion.likelihood import DiffusionLikelihood
from diffalign.models.diffusion.path import FlowPath
from diffalign.models.diffusion.trajectory import forward
from diffalign.models.lora_layers import Switch
from diffalign.models.reference import AdapterOff, Frozen, NoReference, Start, eval_mode

QUERY = Query(Noised(torch.ones(1, 2, 1, 1, 1), torch.zeros(1), torch.zeros(1, 2, 1, 1, 1), torch.ones(1)), {})


class Switched(nn.Module):
    """Gives 1 from its base and 3 with its adapter; dropout tells train mode from eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.base, self.extra = nn.Parameter(torch.ones(())), nn.Parameter(torch.full((), 2.0))
        self.dropout = nn.Dropout(0.5)
        self.on = True

    def forward(self, x):
        return self.dropout(x * (self.base + self.extra * self.on))


@contextlib.contextmanager
def off(model):
    model.on = False
    try:
        yield
    finally:
        model.on = True


@dataclass
class Watching:
    """A likelihood that notes how the model is when it is asked."""

    error: Exception | None = None
    seen: list[tuple[bool, bool, bool]] = field(default_factory=list)  # (train mode, gradient, adapter)

    def prepare(self, driver, batch, generator):
        raise AssertionError("a reference scores queries; it never draws one")

    def score(self, model, query):
        self.seen.append((model.training, torch.is_grad_enabled(), model.on))
        if self.error is not None:
            raise self.error
        return model(query.noised.x_t).flatten(2).mean(dim=2)


def references(model):
    return {"frozen": Frozen(model), "adapter_off": AdapterOff(model, partial(off, model)), "start": Start.of(model)}


kinds = pytest.mark.parametrize("kind", ["frozen", "adapter_off", "start"])


def test_no_reference_gives_none_and_runs_no_network():
    watching = Watching()
    assert NoReference().score(watching, QUERY) is None
    assert watching.seen == []


def test_frozen_gives_the_scores_of_its_own_network():
    assert Frozen(Switched()).score(Watching(), QUERY).tolist() == [[3.0, 3.0]]


def test_adapter_off_gives_the_scores_of_the_base():
    model = Switched()
    assert AdapterOff(model, partial(off, model)).score(Watching(), QUERY).tolist() == [[1.0, 1.0]]


def test_a_start_keeps_giving_the_scores_that_the_policy_began_with():
    model = Switched().eval()
    start = Start.of(model)
    with torch.no_grad():
        model.extra.add_(5.0)
    assert start.score(Watching(), QUERY).tolist() == [[3.0, 3.0]]
    assert model(QUERY.noised.x_t).flatten().tolist() == [8.0, 8.0]


@kinds
def test_scores_are_taken_in_eval_mode_without_gradient(kind):
    watching, model = Watching(), Switched()
    scores = references(model)[kind].score(watching, QUERY)
    assert watching.seen == [(False, False, kind != "adapter_off")]
    assert not scores.requires_grad


@kinds
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("error", [None, RuntimeError("out of memory")])
def test_mode_adapter_and_gradient_come_back_also_on_an_error(kind, training, error):
    model = Switched().train(training)
    with contextlib.suppress(RuntimeError):
        references(model)[kind].score(Watching(error), QUERY)
    assert (model.training, model.dropout.training, model.on) == (training, training, True)
    assert torch.is_grad_enabled()


@kinds
def test_an_error_in_scoring_is_not_swallowed(kind):
    with pytest.raises(RuntimeError, match="out of memory"):
        references(Switched())[kind].score(Watching(RuntimeError("out of memory")), QUERY)


def test_eval_mode_restores_every_layer_to_its_own_mode():
    model = Switched().train()
    model.dropout.eval()
    with eval_mode(model):
        assert not model.training
    assert (model.training, model.dropout.training) == (True, False)


@pytest.fixture(scope="module")
def unet():
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    model = UNet2DConditionModel(
        sample_size=4,
        block_out_channels=(8, 16),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=8,
        attention_head_dim=4,
    )
    add_lora(model, targets=("to_q", "to_v"), rank=2)
    return model.train()


@pytest.fixture
def scored():
    """Return a likelihood of the real network and a query of two records."""

    def denoise(model, x, t, condition):
        return model(x, 1000 * t, condition["prompt"], return_dict=False)[0]

    likelihood = DiffusionLikelihood(FlowPath(), denoise, forward)
    generator = torch.Generator().manual_seed(1)
    x0, prompt = torch.randn(2, 2, 4, 4, 4, generator=generator), torch.randn(2, 3, 8, generator=generator)
    batch = Batch(x0, {"prompt": prompt}, {"prompt": torch.zeros(1, 3, 8)}, torch.ones(2))
    return likelihood, likelihood.prepare(None, batch, generator)


def set_adapter(model, value):
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.fill_(value)


def test_a_new_adapter_changes_no_score(unet, scored):
    set_adapter(unet, 0.0)
    likelihood, query = scored
    torch.testing.assert_close(AdapterOff(unet, Switch(unet)).score(likelihood, query), likelihood.score(unet, query), rtol=0, atol=0)


def test_a_trained_adapter_changes_the_policy_and_not_the_reference(unet, scored):
    likelihood, query = scored
    reference = AdapterOff(unet, Switch(unet))
    set_adapter(unet, 0.0)
    start = likelihood.score(unet, query).detach()
    set_adapter(unet, 0.5)
    assert (likelihood.score(unet, query) - start).abs().min() > 1e-6
    torch.testing.assert_close(reference.score(likelihood, query), start, rtol=0, atol=0)


def test_only_the_adapter_learns_and_it_still_does_after_the_reference(unet, scored):
    likelihood, query = scored
    set_adapter(unet, 0.5)
    names = {name for name, p in unet.named_parameters() if p.requires_grad}
    assert names
    assert all("lora_" in name for name in names)
    AdapterOff(unet, Switch(unet)).score(likelihood, query)
    assert {name for name, p in unet.named_parameters() if p.requires_grad} == names
    gradients = torch.autograd.grad(likelihood.score(unet, query).sum(), trainable(unet))
    assert all(g.isfinite().all() and g.abs().sum() > 0 for g in gradients)


def test_a_start_leaves_the_gradient_alone_that_was_begun_before_it(unet, scored):
    likelihood, query = scored
    set_adapter(unet, 0.5)
    start = Start.of(unet)
    before = likelihood.score(unet, query).detach()
    set_adapter(unet, 0.25)
    expected = torch.autograd.grad(likelihood.score(unet, query).sum(), trainable(unet))
    score = likelihood.score(unet, query)
    torch.testing.assert_close(start.score(likelihood, query), before, rtol=0, atol=0)
    for gradient, known in zip(torch.autograd.grad(score.sum(), trainable(unet)), expected, strict=True):
        torch.testing.assert_close(gradient, known, rtol=0, atol=0)


def test_a_real_adapter_is_on_again_after_an_error(unet, scored):
    likelihood, query = scored
    set_adapter(unet, 0.5)
    before = likelihood.score(unet, query).detach()

    def fails(model, x, t, condition):
        raise RuntimeError("out of memory")

    broken = DiffusionLikelihood(FlowPath(), fails, forward)
    with pytest.raises(RuntimeError, match="out of memory"):
        AdapterOff(unet, Switch(unet)).score(broken, query)
    assert unet.training
    torch.testing.assert_close(likelihood.score(unet, query), before, rtol=0, atol=0)
