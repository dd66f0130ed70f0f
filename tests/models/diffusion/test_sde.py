"""Sampler steps with noise against their golden numbers, against diffusers' DDIM, and what has no density."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler

from diffalign.core.errors import ConfigError
from diffalign.models.diffusion.path import FlowPath, VPPath
from diffalign.models.diffusion.sde import KINDS, divergence, kernel, log_density, step
from diffalign.models.diffusion.window import window
from tests.golden.online import close, golden, tensor

EXACT = {"rtol": 1e-9, "atol": 1e-12}
SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def one(values):
    """Return golden latents (B, C, H, W) as (B, 1, C, H, W)."""
    return tensor(values)[:, None]


def cases(kind):
    return pytest.mark.parametrize("case", golden(kind).values(), ids=list(golden(kind)))


def check(case, path, kind, level, t, to, second=None):
    """Compare mean, std, the next point and log-densities."""
    mean, std = step(path, one(case["x"]), one(case["output"]), t, to, kind, level, second=second)
    close(mean[:, 0], case["mean"])
    close(std, [case["std"]] * len(std))
    if "next" not in case:
        return
    following = mean + std.view(-1, 1, 1, 1, 1) * one(case["noise"])
    close(following[:, 0], case["next"])
    for x_to, suffix in ((following, ""), (one(case["other"]), "_other")):
        close(log_density(x_to, mean, std)[:, 0], case["log_prob" + suffix])
        if "log_prob_bare" in case:
            close(log_density(x_to, mean, std, "bare")[:, 0], case["log_prob_bare" + suffix])


@cases("sde_flow")
def test_steps_of_flows_are_the_golden_ones(case):
    t, to = (torch.full((len(case["x"]),), case[name], dtype=torch.float64) for name in ("t", "to"))
    second = None if case["t_max"] is None else tensor(case["t_max"])
    check(case, FlowPath(), case["kind"], case["level"], t, to, second)


@cases("ddim_vp")
def test_steps_of_ddim_on_a_variance_preserving_path_are_the_golden_ones(case):
    config = SD | {"prediction_type": case["prediction"], "rescale_betas_zero_snr": case["zero_snr"]}
    t, to = (torch.full((len(case["x"]),), case[name]) for name in ("t", "to"))
    check(case, VPPath.from_config(config), "ddim", case["eta"], t, to)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_a_ddim_step_is_that_of_diffusers(prediction):
    scheduler = DDIMScheduler(**SD, prediction_type=prediction, clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    scheduler.set_timesteps(10)
    x, output, noise = torch.randn(3, 2, 1, 4, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    path = VPPath.from_config(dict(scheduler.config))
    torch.testing.assert_close(scheduler.alphas_cumprod.double(), path.alphas_cumprod, rtol=1e-4, atol=0)  # float32
    scheduler.alphas_cumprod, scheduler.final_alpha_cumprod = path.alphas_cumprod, path.alphas_cumprod[0]
    for t in (901, 401, 1):
        theirs = scheduler.step(output[:, 0], t, x[:, 0], eta=1.0, variance_noise=noise[:, 0]).prev_sample
        mean, std = step(path, x, output, torch.tensor([t, t]), torch.tensor([t - 100] * 2), "ddim", 1.0)
        torch.testing.assert_close((mean + std.view(-1, 1, 1, 1, 1) * noise)[:, 0], theirs, **EXACT)
        # The log-density is that of the normal with diffusers' own variance.
        spread = scheduler._get_variance(t, t - 100) ** 0.5
        exact = torch.distributions.Normal(mean, spread).log_prob(theirs[:, None]).flatten(2).mean(dim=2)
        torch.testing.assert_close(log_density(theirs[:, None], mean, std), exact, **EXACT)


def test_every_kind_without_level_is_the_deterministic_step():
    x, output = torch.randn(2, 2, 1, 4, 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    t, to = tensor([0.7, 0.4]), tensor([0.6, 0.1])
    euler, _ = step(FlowPath(), x, output, t, to, "ode", 0.0)
    torch.testing.assert_close(euler, x + (to - t).view(-1, 1, 1, 1, 1) * output)
    for kind in KINDS:
        mean, std = step(FlowPath(), x, output, t, to, kind, 0.0)
        torch.testing.assert_close(mean, euler)
        assert not std.any(), kind


def test_ddim_and_cps_keep_the_noise_level_of_the_path():
    t, to = tensor([0.9, 0.5, 1.0]), tensor([0.7, 0.1, 0.9])
    for kind, level in (("ddim", 1.0), ("ddim", 0.3), ("cps", 0.8)):
        c, std = kernel(FlowPath(), t, to, kind, level)
        torch.testing.assert_close(c.square() + std.square(), to.square())
    path = VPPath.from_config(SD)
    c, std = kernel(path, torch.tensor([801]), torch.tensor([601]), "cps", 0.8)
    torch.testing.assert_close(c.square() + std.square(), path.level(torch.tensor([601]))[1].square())


def test_a_density_is_refused_where_there_is_none():
    x = torch.zeros(1, 1, 1, 1, 1)
    with pytest.raises(ConfigError, match="no noise, so it has no density"):
        log_density(x, x, torch.zeros(1))
    for kind in ("flow_sde", "dance"):
        with pytest.raises(ConfigError, match=f"`{kind}` is for flow models; this one predicts epsilon"):
            kernel(VPPath.from_config(SD), torch.tensor([2]), torch.tensor([1]), kind, 0.7)


@cases("step_kl")
def test_the_divergence_of_two_steps_is_the_golden_one(case):
    mean, other = one(case["mean"]).requires_grad_(), one(case["mean_ref"])
    exact = divergence(mean, other, torch.full((len(mean),), case["std"], dtype=torch.float64))
    close(exact[:, 0], case["exact"])
    close(exact[:, 0] * case["root_dt"] ** 2, case["released"])
    (gradient,) = torch.autograd.grad(exact.mean(), mean)
    close(gradient[:, 0], case["exact_grad_mean"])
    if "velocity_kl" in case:
        t, to = (torch.full((len(mean),), case[name], dtype=torch.float64) for name in ("t", "to"))
        (first, std), (second, _) = (
            step(FlowPath(), one(case["x"]), one(case[name]), t, to, "flow_sde", case["level"]) for name in ("output", "output_ref")
        )
        close(divergence(first, second, std)[:, 0], case["velocity_kl"])


@cases("window")
def test_the_window_moves_as_released(case):
    constants = {name: case[name] for name in ("stay", "size", "top", "move", "roll_back", "start", "shrink")}
    assert [list(window(update, **constants)) for update in range(case["updates"])] == case["trained"]


def test_a_window_that_would_never_move_is_refused():
    with pytest.raises(ConfigError, match="stay 0"):
        window(1, top=3, stay=0)
