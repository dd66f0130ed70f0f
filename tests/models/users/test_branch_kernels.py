"""A branch and another attention kernel: diffusers then builds new processors, which the switch must find."""

from __future__ import annotations

import pytest
import torch

from diffalign.core.errors import ConfigError
from diffalign.methods.builders import speed
from diffalign.methods.config import TrainConfig
from diffalign.models.users import branch
from tests.models.users.denoisers import WIDTH, answer, fill, micro, users

# diffusers' xformers needs a GPU; going back from it builds processors anew in the same way.


@pytest.mark.parametrize("before", [True, False])
@torch.no_grad()
def test_the_switch_reaches_processors_that_have_taken_the_places_of_others(before):
    denoiser = micro("sd")
    base = answer(denoiser)
    if before:
        denoiser.disable_xformers_memory_efficient_attention()
    branch.attach(denoiser, WIDTH)
    fill(denoiser)
    mine, state = answer(denoiser, users()), branch.state_of(denoiser)
    if not before:
        processors = denoiser.attn_processors
        denoiser.disable_xformers_memory_efficient_attention()
        assert all(other is not processors[name] for name, other in denoiser.attn_processors.items())
    with branch.disabled(denoiser):
        assert torch.equal(answer(denoiser, users()), base)
    assert torch.equal(answer(denoiser, users()), mine)
    branch.set_strength(denoiser, 0.0)
    assert torch.equal(answer(denoiser, users()), base)
    assert all(torch.equal(value, branch.state_of(denoiser)[part][key]) for part, found in state.items() for key, value in found.items())


def test_xformers_is_refused_where_it_would_take_the_branch_away():
    denoiser, config = micro("sd3"), TrainConfig(dataset_name="pairs", attention_backend="xformers")
    speed.apply(config, denoiser, kernels=False)
    branch.attach(denoiser, WIDTH)
    with pytest.raises(ConfigError, match=r"xformers .*SD3Transformer2DModel.*sdpa"):
        speed.apply(config, denoiser, kernels=False)
