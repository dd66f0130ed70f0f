"""Beta from other programs, by hand: the same logit, written as each of them writes it."""

from __future__ import annotations

import pytest
import torch

from diffalign.core.errors import ConfigError
from diffalign.core.types import Scores
from diffalign.objectives import OBJECTIVES
from diffalign.objectives.beta import CONVENTIONS, convert

LATENT = (4, 64, 64)  # Stable Diffusion 1.5 at 512 pixels: 4 * 64 * 64 = 16384 numbers


def test_the_conventions_with_one_half_of_a_mean_are_ours():
    for name in ("diffusion_dpo", "diffusers_sdxl", "flow_grpo", "simpletuner_mean"):
        assert convert(5000.0, name) == 5000.0, name


def test_a_mean_without_one_half_is_doubled():
    # beta * (a - b) = 2 beta * (a/2 - b/2): 2500 of the SD1.5 script is 5000, 500 of the Diffusion-NPO release 1000
    assert convert(2500.0, "diffusers_sd15") == 5000.0
    assert convert(500.0, "diffusion_npo") == 1000.0


def test_half_a_sum_is_multiplied_by_the_size_of_the_latent():
    # 5000 / 16384 = 0.30517578125
    assert convert(0.30517578125, "simpletuner", LATENT) == 5000.0


def test_a_sum_without_one_half_is_multiplied_by_twice_the_size():
    # 0.5 * 5000 / 16384 = 0.152587890625; SDXL at 1024 pixels has 65536 numbers: 0.5 * 5000 / 65536 = 0.03814697265625
    assert convert(0.152587890625, "sum", LATENT) == 5000.0
    assert convert(0.03814697265625, "sum", (4, 128, 128)) == 5000.0


def test_every_convention_gives_the_loss_that_its_own_formula_gives():
    shape = (2, 3, 3)
    squares = torch.rand(4, 1, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)  # policy w, l, reference w, l
    means, sums = squares.mean(dim=(2, 3, 4)), squares.sum(dim=(2, 3, 4))
    scores = Scores(-0.5 * means[:2].T, -0.5 * means[2:].T)
    for name, convention in CONVENTIONS.items():
        error = sums if convention.summed else means
        margin = (error[0] - error[1]) - (error[2] - error[3])
        theirs = torch.nn.functional.softplus(3.0 * (0.5 if convention.half else 1.0) * margin)
        ours = OBJECTIVES["dpo"].loss(scores, beta=convert(3.0, name, shape))
        torch.testing.assert_close(ours, theirs, msg=name)


def test_a_sum_needs_the_shape_of_the_latent():
    with pytest.raises(ConfigError, match="latent_shape"):
        convert(1.0, "simpletuner")


def test_an_unknown_convention_names_the_nearest():
    with pytest.raises(ConfigError, match="diffusers_sd15"):
        convert(1.0, "diffusers_sd1.5")
