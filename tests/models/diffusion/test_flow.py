"""The path of flow models: densities of training times, the resolution shift, the transport weight."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.training_utils import compute_density_for_timestep_sampling
from scipy.stats import ks_2samp, kstest

from diffalign.core.types import Batch
from diffalign.models.diffusion.inversion import ddim_inversion
from diffalign.models.diffusion.likelihood import DiffusionLikelihood
from diffalign.models.diffusion.path import FlowPath, mix, shifted, target
from diffalign.models.diffusion.self_rollout import self_rollout
from diffalign.models.diffusion.trajectory import forward

# The scheduler config of Flux-dev.
DYNAMIC = {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15, "base_image_seq_len": 256, "max_image_seq_len": 4096}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_a_shift_moves_times_towards_noise_and_is_undone_by_its_inverse():
    # 3 * 0.5 / (1 + 2 * 0.5) = 0.75
    assert shifted(torch.tensor(0.5), 3.0).item() == 0.75
    t = torch.linspace(0, 1, 11, dtype=torch.float64)
    torch.testing.assert_close(shifted(shifted(t, 3.0), 1 / 3.0), t, rtol=1e-12, atol=1e-15)


def test_the_shift_is_the_schedulers_own():
    sigmas = FlowMatchEulerDiscreteScheduler(shift=3.0).sigmas[:-1]  # 1000 of them, of shifted 1, 0.999, ..., 0.001
    ours = shifted(torch.arange(1000, 0, -1, dtype=torch.float64) / 1000, FlowPath.from_config({"shift": 3.0}, 128, 128).shift)
    torch.testing.assert_close(ours[: len(sigmas)].float(), sigmas.float(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("side", "mu"), [(32, 0.5), (128, 1.15), (64, 0.5 + 0.65 * 768 / 3840)])
def test_a_dynamic_shift_grows_with_the_picture(side, mu):
    path = FlowPath.from_config(DYNAMIC, side, side)
    assert path.shift == pytest.approx(math.exp(mu), rel=1e-12)
    scheduler = FlowMatchEulerDiscreteScheduler(**DYNAMIC)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / 28, 28), mu=mu)  # as the stock Flux pipeline calls it
    torch.testing.assert_close(path.solver_times(28).flip(0).float(), scheduler.sigmas, rtol=1e-5, atol=1e-6)


STEPS = (1, 2, 3, 4, 10, 25, 28, 50)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_solver_times_are_the_schedulers_own_where_the_pipeline_leaves_them_to_it(shift):
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    smallest = shifted(torch.tensor(1e-3, dtype=torch.float64), shift).item()  # which the scheduler shifts once more
    path = FlowPath(shift=shift, cleanest=smallest)
    for steps in STEPS:
        scheduler.set_timesteps(steps)
        torch.testing.assert_close(path.solver_times(steps).flip(0).float(), scheduler.sigmas, rtol=1e-5, atol=1e-6, msg=str(steps))


def test_solver_times_with_a_dynamic_shift_are_the_schedulers_own_too():
    scheduler = FlowMatchEulerDiscreteScheduler(**DYNAMIC)
    path = replace(FlowPath.from_config(DYNAMIC, 128, 128), cleanest=1e-3)
    for steps in STEPS:
        scheduler.set_timesteps(steps, mu=1.15)
        torch.testing.assert_close(path.solver_times(steps).flip(0).float(), scheduler.sigmas, rtol=1e-5, atol=1e-6, msg=str(steps))


def test_a_dynamic_shift_is_that_of_the_batch_whatever_size_the_path_was_made_for():
    # 16 by 64 pixels, 4 to a latent, 2 latents to a token: 2 * 8 = 16 tokens; 64 by 64: 64. exp(0.5 - 0.65 * 240 / 3840) = 1.5831.
    for made_for in (4, 16, 64):
        path = FlowPath.from_config(DYNAMIC, made_for, made_for, density="logit_normal", logit_mean=-0.5)
        assert round(path.at(4, 16).shift, 4) == round(math.exp(0.5 - 0.65 * 240 / 3840), 4) == 1.5831
        assert round(path.at(16, 16).shift, 4) == round(math.exp(0.5 - 0.65 * 192 / 3840), 4) == 1.596
        assert (path.at(4, 16).density, path.at(4, 16).logit_mean) == ("logit_normal", -0.5)
        assert path.at(4, 16) == path.at(16, 4)
    # SD3 with 4 to 64 tokens: 16 pixels have 4, and exp(0.5) = 1.6487; 64 pixels have 64, and exp(1.15) = 3.1582.
    path = FlowPath.from_config(DYNAMIC | {"base_image_seq_len": 4, "max_image_seq_len": 64}, 4, 4)
    assert round(path.shift, 4) == round(path.at(4, 4).shift, 4) == 1.6487
    assert round(path.at(16, 16).shift, 4) == 3.1582
    for fixed in (FlowPath.from_config({"shift": 3.0}, 4, 4), FlowPath.from_config(DYNAMIC, 4, 4, shift=3.0)):
        assert fixed.shift == fixed.at(64, 64).shift == 3.0


def test_a_likelihood_draws_times_with_the_shift_of_its_batch():
    shifts = []

    def trajectory(x0, predict, path, generator):
        shifts.append(path.shift)
        return forward(x0, predict, path, generator)

    path = FlowPath.from_config(DYNAMIC, 64, 64)
    likelihood = DiffusionLikelihood(path, lambda model, x, t, condition: x, trajectory)
    for height, width in ((4, 16), (16, 16)):
        x0, frames = torch.zeros(2, 2, 4, height, width), torch.zeros(2, 2, 6)
        likelihood.prepare(None, Batch(x0=x0, condition={}, empty={}, frames=frames, prob=torch.ones(2)), seeded())
    assert [round(shift, 4) for shift in shifts] == [1.5831, 1.596]


def test_logit_normal_times_are_normal_in_the_logit():
    t = FlowPath("logit_normal", logit_mean=0.5, logit_std=0.8).sample_t(4000, seeded())
    assert kstest(torch.logit(t).numpy(), "norm", args=(0.5, 0.8)).pvalue > 0.01


@pytest.mark.parametrize("density", ["logit_normal", "mode"])
def test_densities_are_those_of_diffusers(density):
    theirs = compute_density_for_timestep_sampling(density, 4000, logit_mean=0.0, logit_std=1.0, mode_scale=1.29, generator=seeded(1))
    assert ks_2samp(FlowPath(density).sample_t(4000, seeded()).numpy(), theirs.numpy()).pvalue > 0.01
    assert ks_2samp(FlowPath("uniform").sample_t(4000, seeded()).numpy(), theirs.numpy()).pvalue < 1e-4


def test_the_mode_density_maps_the_draw_as_its_equation_says(monkeypatch):
    monkeypatch.setattr("diffalign.models.diffusion.path.uniform", lambda count, _: torch.full((count,), 0.25, dtype=torch.float64))
    # 1 - u - s (cos^2(pi u / 2) - 1 + u) with u = 1/4, s = 1/2: cos^2(pi / 8) = (2 + sqrt 2) / 4 = 0.853553, so 0.75 - 0.5 * 0.103553
    assert FlowPath("mode", mode_scale=0.5).sample_t(1, seeded()).item() == pytest.approx(0.698223305, rel=1e-8)


def test_training_times_are_shifted_and_stay_off_the_clean_end():
    t = FlowPath("logit_normal", shift=3.0).sample_t(4000, seeded())
    assert t.median().item() == pytest.approx(0.75, abs=0.03)  # the median of a logit-normal, 1/2, shifted
    assert FlowPath("logit_normal", logit_mean=-50.0).sample_t(10, seeded()).min() == 1e-3
    assert t.max() <= 1.0


def test_transport_turns_the_velocity_error_into_that_of_the_noise():
    path, generator = FlowPath(transport=True), seeded()
    x0, noise, guess = torch.randn(3, 4, 1, 5, 5, dtype=torch.float64, generator=generator)
    t = torch.tensor([0.1, 0.5, 0.75, 1.0], dtype=torch.float64)
    x_t, right = mix(path, x0, noise, t), target(path, x0, noise, t)
    implied = x_t + (1 - t).view(-1, 1, 1, 1) * guess  # the noise that the velocity `guess` implies
    error = (guess - right).square().mean(dim=(1, 2, 3))
    torch.testing.assert_close(path.weight(t) * error, (implied - noise).square().mean(dim=(1, 2, 3)), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("trajectory", [forward, ddim_inversion, self_rollout])
def test_every_trajectory_carries_the_weight_of_its_path(trajectory):
    def predict(x, t, /, *, empty=False, rows=None):
        return 0.1 * x

    x0 = torch.randn(3, 2, 4, 4, 4, generator=seeded())
    noised = trajectory(x0, predict, FlowPath(transport=True), [seeded(s) for s in range(3)])
    torch.testing.assert_close(noised.weight, ((1 - noised.t) ** 2).float())
    assert trajectory(x0, predict, FlowPath(), [seeded(s) for s in range(3)]).weight.tolist() == [1.0, 1.0, 1.0]


def test_an_inversion_ends_at_each_records_own_time_and_is_spaced_by_the_shift():
    t = torch.tensor([0.75, 0.9], dtype=torch.float64)
    times = FlowPath(shift=3.0).inversion_times(2, t)
    # 0.75 is 0.5 shifted by 3; half of that is 0.25, which 3 shifts to 0.75 / 1.5 = 0.5.
    assert times[0].tolist() == pytest.approx([0.0, 0.5, 0.75], rel=1e-12)
    assert times[:, -1].tolist() == t.tolist()
