"""Paths: `split` undoes `mix` and `target`, `advance` is DDIM and Euler, and the schedules are those of diffusers."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

from diffalign.core.errors import ConfigError
from diffalign.models.diffusion.path import FlowPath, VPPath, advance, mix, split, target, zero_terminal_snr
from diffalign.models.diffusion.random import integers, normal, uniform

SD = {"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SCHEDULES = {
    "linear": {"beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.02},
    "scaled_linear": SD,
    "squaredcos_cap_v2": {"beta_schedule": "squaredcos_cap_v2"},
    "trained_betas": {"trained_betas": torch.linspace(0.001, 0.03, 50).tolist(), "num_train_timesteps": 50},
    "zero_terminal_snr": SD | {"rescale_betas_zero_snr": True},
    "short": SD | {"num_train_timesteps": 100},
}
PREDICTIONS = ("epsilon", "v_prediction", "sample")
VP = {kind: VPPath.from_config(SD | {"prediction_type": kind}) for kind in PREDICTIONS}
PATHS = VP | {"velocity": FlowPath(), "turbo": VPPath.from_config(SCHEDULES["zero_terminal_snr"] | {"prediction_type": "v_prediction"})}
LAST = 999
EXACT = {"rtol": 1e-9, "atol": 1e-9}


def latents(seed, count=3):
    return torch.randn(2, count, 2, 4, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def times(name, share, count=3):
    """Return one time for every record, at `share` of the way from the first to the last."""
    return torch.full((count,), share, dtype=torch.float64) if name == "velocity" else torch.full((count,), round(share * LAST))


every = pytest.mark.parametrize("name", sorted(PATHS))
share = st.floats(0.0, 1.0, allow_subnormal=False)  # a trainer in the same process flushes them


@every
@given(share=share, seed=st.integers(0, 99))
@settings(deadline=None, max_examples=50)
def test_split_gives_back_what_was_mixed(name, share, seed):
    path, t = PATHS[name], times(name, share)
    x0, noise = latents(seed)
    found = split(path, mix(path, x0, noise, t), target(path, x0, noise, t), t)
    # The sample path divides by sigma, at least sqrt(0.00085), so that t = 0 is no exception.
    torch.testing.assert_close(found, (x0, noise), **EXACT)


@every
@pytest.mark.parametrize("share", [0.0, 1.0])
def test_both_ends_round_trip(name, share):
    path, t = PATHS[name], times(name, share)
    x0, noise = latents(7)
    torch.testing.assert_close(split(path, mix(path, x0, noise, t), target(path, x0, noise, t), t), (x0, noise), **EXACT)


@every
@given(share=share, seed=st.integers(0, 99))
@settings(deadline=None, max_examples=50)
def test_mix_and_target_give_back_what_was_split(name, share, seed):
    path, t = PATHS[name], times(name, share)
    x, output = latents(seed)
    x0, noise = split(path, x, output, t)
    torch.testing.assert_close(mix(path, x0, noise, t), x, **EXACT)
    torch.testing.assert_close(target(path, x0, noise, t), output, **EXACT)


@every
@given(share=share, seed=st.integers(0, 99))
@settings(deadline=None, max_examples=50)
def test_advancing_to_the_same_time_is_the_identity(name, share, seed):
    x, output = latents(seed)
    t = times(name, share)
    torch.testing.assert_close(advance(PATHS[name], x, output, t, t), x, **EXACT)


@every
def test_every_record_has_its_own_time(name):
    path, x, output = PATHS[name], *latents(0)
    start, end = (torch.cat([times(name, s, 1) for s in shares]) for shares in ((0.1, 0.5, 0.9), (0.2, 0.3, 0.6)))
    together = advance(path, x, output, start, end)
    for i in range(3):
        own = slice(i, i + 1)
        torch.testing.assert_close(advance(path, x[own], output[own], start[own], end[own]), together[own], rtol=0, atol=0)


def test_levels_by_hand():
    path = VPPath(torch.tensor([0.64, 0.36], dtype=torch.float64))
    alpha, sigma = path.level(torch.tensor([0, 1]))
    assert alpha.tolist() == pytest.approx([0.8, 0.6])  # sqrt 0.64, sqrt 0.36
    assert sigma.tolist() == pytest.approx([0.6, 0.8])  # sqrt 0.36, sqrt 0.64
    alpha, sigma = FlowPath().level(torch.tensor([0.25]))
    assert (alpha.item(), sigma.item()) == (0.75, 0.25)


@pytest.mark.parametrize(("kind", "expected"), [("epsilon", 5.0), ("sample", 10.0), ("v_prediction", -2.0)])
def test_mix_and_targets_by_hand(kind, expected):
    # alpha 0.8, sigma 0.6, x0 10, noise 5: x_t = 8 + 3 = 11, v = 0.8 * 5 - 0.6 * 10 = -2
    path = VPPath(torch.tensor([0.64], dtype=torch.float64), kind)
    x0, noise, t = torch.full((1, 1), 10.0), torch.full((1, 1), 5.0), torch.tensor([0])
    assert mix(path, x0, noise, t).item() == pytest.approx(11.0)
    assert target(path, x0, noise, t).item() == pytest.approx(expected)


def test_a_flow_step_is_the_euler_step():
    x, velocity = latents(1)
    start, end = torch.full((3,), 0.8, dtype=torch.float64), torch.full((3,), 0.55, dtype=torch.float64)
    torch.testing.assert_close(advance(FlowPath(), x, velocity, start, end), x + (0.55 - 0.8) * velocity, **EXACT)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@every
def test_results_have_the_latents_own_dtype(name, dtype):
    x0, noise = latents(0).to(dtype)
    t = times(name, 0.5)
    results = (mix(PATHS[name], x0, noise, t), target(PATHS[name], x0, noise, t), *split(PATHS[name], x0, noise, t))
    assert {x.dtype for x in results} == {dtype}
    assert {level.dtype for level in PATHS[name].level(t)} == {torch.float64}


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_levels_are_those_of_diffusers(schedule):
    ours = VPPath.from_config(SCHEDULES[schedule]).alphas_cumprod
    theirs = DDIMScheduler.from_config(SCHEDULES[schedule]).alphas_cumprod
    assert ours.dtype == torch.float64
    torch.testing.assert_close(ours, theirs.double(), rtol=1e-5, atol=1e-5)


def test_a_scheduler_config_without_keys_means_what_diffusers_means():
    torch.testing.assert_close(VPPath.from_config({}).alphas_cumprod, DDPMScheduler().alphas_cumprod.double(), rtol=1e-5, atol=1e-5)


def test_zero_terminal_snr_ends_at_exactly_zero_and_starts_where_it_did():
    before = VPPath.from_config(SD).alphas_cumprod
    after = zero_terminal_snr(before)
    assert after[-1].item() == 0.0
    assert after[0].item() == pytest.approx(before[0].item(), rel=1e-12)
    assert (after.diff() < 0).all()


@pytest.mark.parametrize("schedule", ["scaled_linear", "squaredcos_cap_v2", "zero_terminal_snr"])
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize(("t", "to"), [(980, 960), (500, 480), (20, 0)])
def test_a_step_is_the_ddim_step_of_diffusers(schedule, kind, t, to):
    config = SCHEDULES[schedule] | {"prediction_type": kind}
    scheduler = DDIMScheduler.from_config(config, clip_sample=False, timestep_spacing="leading", steps_offset=0)
    scheduler.set_timesteps(50)  # 20 apart, so that the step from t leads to t - 20
    x, output = latents(2)
    theirs = scheduler.step(output, t, x, eta=0.0).prev_sample
    ours = advance(VPPath.from_config(config), x, output, torch.full((3,), t), torch.full((3,), to))
    # diffusers' table is float32: its error grows by 1 / alpha, the largest number in the step.
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_noising_and_velocity_are_those_of_diffusers():
    scheduler, (x0, noise), t = DDPMScheduler.from_config(SD), latents(3), torch.tensor([0, 400, 999])
    torch.testing.assert_close(mix(VP["epsilon"], x0, noise, t), scheduler.add_noise(x0, noise, t), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(target(VP["v_prediction"], x0, noise, t), scheduler.get_velocity(x0, noise, t), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("key", "value"), [("beta_schedule", "sigmoid"), ("prediction_type", "flow_prediction")])
def test_an_unknown_schedule_or_prediction_is_refused_by_name(key, value):
    with pytest.raises(ConfigError, match=rf"{key} is `{value}`; expected"):
        VPPath.from_config(SD | {key: value})


def test_training_times_cover_the_whole_table_and_nothing_else():
    path = VPPath.from_config({"num_train_timesteps": 10})
    drawn = path.sample_t(500, torch.Generator().manual_seed(0))
    assert drawn.dtype == torch.int64
    assert set(drawn.tolist()) == set(range(10))


def test_turbo_models_train_at_their_own_times():
    path = VPPath.from_config(SD, times=(249, 499, 749, 999))
    drawn = path.sample_t(200, torch.Generator().manual_seed(0))
    assert set(drawn.tolist()) == {249, 499, 749, 999}
    assert all(set(path.sample_t(1, [torch.Generator().manual_seed(s)]).tolist()) <= {249, 499, 749, 999} for s in range(9))


def test_flow_times_fill_the_unit_interval():
    drawn = FlowPath().sample_t(2000, torch.Generator().manual_seed(0))
    assert drawn.dtype == torch.float64
    assert drawn.min() >= 0.0
    assert drawn.max() < 1.0
    # mean 1/2, standard error sqrt(1/12) / sqrt(2000) = 0.0065
    assert drawn.mean().item() == pytest.approx(0.5, abs=4 * math.sqrt(1 / 12 / 2000))


def seeded(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


DRAWS = {
    "normal": lambda count, generator: normal((count, 2, 3), generator),
    "uniform": uniform,
    "integers": lambda count, generator: integers(1000, count, generator),
}


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_a_record_draws_the_same_in_any_batch(draw):
    together = draw(3, seeded(5, 6, 7))
    assert len(together) == 3
    torch.testing.assert_close(torch.cat([draw(1, seeded(s)) for s in (5, 6, 7)]), together, rtol=0, atol=0)
    assert not torch.equal(together[0], together[1])


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_a_wrong_number_of_generators_is_refused(draw):
    with pytest.raises(ValueError, match="2 generators for 3 records"):
        draw(3, seeded(0, 1))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_draws_lie_where_their_generator_does(draw):
    generator = torch.Generator("cuda").manual_seed(0)
    assert draw(2, generator).device.type == "cuda"
    assert draw(2, [generator, generator]).device.type == "cuda"
    assert VPPath.from_config(SD, times=(249, 999)).sample_t(2, generator).device.type == "cuda"
