"""The path of EDM: levels, targets, times and steps are those of diffusers' EDM schedulers, in units of the data's deviation."""

from __future__ import annotations

import pytest
import torch
from diffusers import EDMDPMSolverMultistepScheduler, EDMEulerScheduler

from diffalign.core.errors import ConfigError
from diffalign.models.diffusion.edm import EDMPath
from diffalign.models.diffusion.path import advance, mix, split, target

PLAYGROUND = {"sigma_min": 0.002, "sigma_max": 80.0, "sigma_data": 0.5, "rho": 7.0}
EVERY = [{}, {"prediction_type": "v_prediction"}, {"sigma_schedule": "exponential", "sigma_data": 1.0, "sigma_max": 120.0}]
every = pytest.mark.parametrize("config", EVERY)


def latents(seed):
    return torch.randn(2, 3, 4, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@every
def test_a_networks_output_is_denoised_as_the_scheduler_does(config):
    """The scheduler's own arithmetic on its own latents, which are the path's times the deviation of the data."""
    scheduler, path = EDMEulerScheduler(**PLAYGROUND | config), EDMPath.from_config(PLAYGROUND | config)
    x0, noise = latents(0), latents(1)
    for sigma in (0.002, 0.3, 5.0, 80.0):
        t = torch.full((2,), sigma, dtype=torch.float64)
        stock = path.data * x0 + sigma * noise
        torch.testing.assert_close(mix(path, x0, noise, t), scheduler.precondition_inputs(stock, sigma), rtol=1e-12, atol=1e-12)
        output = latents(2)
        denoised = scheduler.precondition_outputs(stock, output, sigma)
        v = -output if path.negated else output
        found, _ = split(path, mix(path, x0, noise, t), v, t)
        torch.testing.assert_close(path.data * found, denoised, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(path.label(t), scheduler.precondition_noise(t).float())
        perfect = target(path, x0, noise, t) * (-1.0 if path.negated else 1.0)
        torch.testing.assert_close(scheduler.precondition_outputs(stock, perfect, sigma), path.data * x0, rtol=1e-9, atol=1e-9)


@every
@pytest.mark.parametrize("kind", [EDMEulerScheduler, EDMDPMSolverMultistepScheduler])
def test_solver_times_are_those_of_the_schedulers(config, kind):
    scheduler, path = kind(**PLAYGROUND | config), EDMPath.from_config(PLAYGROUND | config)
    for steps in (2, 25):
        scheduler.set_timesteps(steps)
        torch.testing.assert_close(path.solver_times(steps).flip(0).float(), scheduler.sigmas, rtol=1e-5, atol=1e-7)


def test_a_step_is_the_euler_step_of_diffusers():
    scheduler, path = EDMEulerScheduler(**PLAYGROUND), EDMPath.from_config(PLAYGROUND)
    scheduler.set_timesteps(8)
    sigma, to = (value.double().expand(2) for value in scheduler.sigmas[3:5])
    x, output = latents(0), latents(1)  # of what the network sees
    stock = x / path.level(sigma)[0].view(-1, 1, 1, 1, 1) * path.data
    scheduler._init_step_index(scheduler.timesteps[3])
    scheduler.is_scale_input_called = True
    stepped = scheduler.step(output, scheduler.timesteps[3], stock).prev_sample
    moved = advance(path, x, -output, sigma, to)
    torch.testing.assert_close(moved, scheduler.precondition_inputs(stepped, to.view(-1, 1, 1, 1, 1)), rtol=1e-6, atol=1e-6)


@every
def test_training_and_inversion_times_lie_in_the_spacing_of_the_solver(config):
    path = EDMPath.from_config(PLAYGROUND | config)
    drawn = path.sample_t(2000, torch.Generator().manual_seed(0))
    assert path.low <= drawn.min()
    assert drawn.max() <= path.high
    # Even in the spacing: half of them lie above the middle time of a solver of three.
    assert abs((drawn > path.solver_times(3)[2]).double().mean() - 0.5) < 0.04
    t = torch.tensor([0.5, path.high], dtype=torch.float64)
    times = path.inversion_times(4, t)
    torch.testing.assert_close(times[:, 0], torch.full((2,), path.low, dtype=torch.float64))
    assert torch.equal(times[:, -1], t)
    torch.testing.assert_close(times[1], path.solver_times(5)[1:])
    later = path.later(t, torch.tensor([0.5, 0.5], dtype=torch.float64))
    assert 0.5 < later[0] < path.high
    assert later[1].item() == pytest.approx(path.high)


def test_levels_by_hand():
    """At sigma 1.2 and deviation 0.5 the hypotenuse is 1.3."""
    alpha, sigma = EDMPath().level(torch.tensor([1.2, 0.0]))
    torch.testing.assert_close(alpha, torch.tensor([0.5 / 1.3, 1.0], dtype=torch.float64))
    torch.testing.assert_close(sigma, torch.tensor([1.2 / 1.3, 0.0], dtype=torch.float64))


def test_another_prediction_is_refused_by_name():
    with pytest.raises(ConfigError, match="prediction_type is `sample`"):
        EDMPath.from_config(PLAYGROUND | {"prediction_type": "sample"})
