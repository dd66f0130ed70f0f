"""What every trajectory promises, and where `forward` ends."""

from __future__ import annotations

import functools
import inspect

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffalign.core.errors import ConfigError
from diffalign.models.diffusion.inversion import invert
from diffalign.models.diffusion.path import FlowPath, VPPath, mix, split, target
from diffalign.models.diffusion.trajectory import TRAJECTORIES, forward

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
PATHS = {kind: VPPath.from_config(SD | {"prediction_type": kind}) for kind in ("epsilon", "v_prediction", "sample")}
PATHS |= {"velocity": FlowPath(), "turbo": VPPath.from_config(SD, times=(249, 499, 749, 999))}
CONSTANTS = {"steps": 3}  # for constants without a default; add here what a new trajectory needs
ONE_CANDIDATE = {"self_rollout"}  # makes its own pictures, and looks at candidate 0 at most
EXACT = {"rtol": 1e-9, "atol": 1e-9}

trajectories = pytest.mark.parametrize("name", sorted(TRAJECTORIES))
paths = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)


def bound(name):
    """Return the trajectory `name` with some value for every constant that needs one."""
    parameters = inspect.signature(TRAJECTORIES[name]).parameters.values()
    needed = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is p.empty]
    return functools.partial(TRAJECTORIES[name], **{n: CONSTANTS[n] for n in needed})


def latents(count, candidates=2, dtype=torch.float64):
    """Return x0 whose every record is the same in a batch of any size."""
    rows = [torch.randn(candidates, 4, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(i)) for i in range(count)]
    return torch.stack(rows).to(dtype)


def seeded(count):
    return [torch.Generator().manual_seed(100 + i) for i in range(count)]


def predict(x, t, *, empty=False, rows=None):
    """Return the output of a network that depends on x, t and the prompt, record by record."""
    return 0.3 * x + 0.1 * torch.sin(t.to(x)).view(-1, 1, 1, 1, 1) - 0.05 * empty


@trajectories
@paths
@given(count=st.integers(1, 4), candidates=st.integers(1, 3))
@settings(deadline=None, max_examples=10)
def test_shapes_are_those_of_the_latents(name, path, count, candidates):
    x0 = latents(count, candidates)
    noised = bound(name)(x0, predict, path, torch.Generator().manual_seed(0))
    expected = (count, 1, *x0.shape[2:]) if name in ONE_CANDIDATE else x0.shape
    assert noised.x_t.shape == noised.target.shape == expected
    assert noised.t.shape == noised.weight.shape == (count,)
    assert noised.x_t.dtype == noised.target.dtype == x0.dtype


@trajectories
@paths
def test_it_lands_on_its_own_line(name, path):
    noised = bound(name)(latents(16), predict, path, seeded(16))
    x0, noise = split(path, noised.x_t, noised.target, noised.t)
    torch.testing.assert_close(mix(path, x0, noise, noised.t), noised.x_t, **EXACT)
    torch.testing.assert_close(target(path, x0, noise, noised.t), noised.target, **EXACT)


@trajectories
@paths
def test_a_batch_is_its_records_one_by_one(name, path):
    x0 = latents(5)
    together = bound(name)(x0, predict, path, seeded(5))
    for i, generator in enumerate(seeded(5)):
        alone = bound(name)(x0[i : i + 1], predict, path, [generator])
        for field in ("x_t", "t", "target", "weight"):
            torch.testing.assert_close(getattr(alone, field), getattr(together, field)[i : i + 1], rtol=0, atol=0)


@trajectories
@paths
def test_the_same_generator_gives_the_same_point(name, path):
    first, second = (bound(name)(latents(3), predict, path, torch.Generator().manual_seed(4)) for _ in range(2))
    assert torch.equal(first.x_t, second.x_t)
    assert torch.equal(first.t, second.t)


@trajectories
@paths
def test_everything_is_finite_in_half_precision_too(name, path):
    noised = bound(name)(latents(8, dtype=torch.float16), predict, path, seeded(8))
    assert noised.x_t.isfinite().all()
    assert noised.target.isfinite().all()


@trajectories
@pytest.mark.parametrize("count", [2, 4])
def test_a_wrong_number_of_generators_is_refused(name, count):
    with pytest.raises(ValueError, match=f"{count} generators for 3 records"):
        bound(name)(latents(3), predict, PATHS["epsilon"], seeded(count))


def not_called(x, t, *, empty=False):
    raise AssertionError("forward asks no network")


@paths
def test_the_noisiest_share_of_the_times_is_the_upper_end_of_all(path):
    every = path.sample_t(4000, torch.Generator().manual_seed(0)).double()
    least = torch.quantile(every, 0.75, interpolation="higher")  # as few times as turbo's four lie on the quantile itself
    t = forward(latents(200), not_called, path, seeded(200), noisiest=0.25).t.double()
    assert t.min() >= least - 0.02 * every.max()
    assert t.max() > every.max() - 0.02 * every.max()


@pytest.mark.parametrize("share", [0.0, -0.5, 1.5])
def test_a_share_of_the_times_that_is_none_is_refused(share):
    for path in PATHS.values():
        with pytest.raises(ConfigError, match=f"noisiest.*{share:g}"):
            path.sample_t(3, torch.Generator(), share)


@paths
@pytest.mark.parametrize("share_noise", [True, False])
def test_forward_leaves_from_the_latents_themselves(path, share_noise):
    x0 = latents(8)
    noised = forward(x0, not_called, path, seeded(8), share_noise=share_noise)
    torch.testing.assert_close(split(path, noised.x_t, noised.target, noised.t)[0], x0, **EXACT)
    assert noised.weight.tolist() == [1.0] * 8


def noise_of(share_noise, candidates=3):
    return forward(latents(200, candidates), not_called, PATHS["epsilon"], seeded(200), share_noise=share_noise).target


@paths
@pytest.mark.parametrize("end", ["grid", "exact"])
def test_an_inversion_asks_the_network_for_the_records_that_still_move(path, end):
    asked, offset = [], torch.tensor([0.0, 0.5, -0.5], dtype=torch.float64)  # what the network adds is each record's own

    def of_record(x, t, *, rows=None):
        rows = torch.arange(3) if rows is None else rows
        asked.append(rows.tolist())
        return predict(x, t) + offset[rows].view(-1, 1, 1, 1, 1)

    discrete = not path.sample_t(1, seeded(1)).is_floating_point()
    t = torch.tensor([150, 950, 450]) if discrete else torch.tensor([0.15, 0.95, 0.45], dtype=torch.float64)
    x0 = latents(3)
    x = invert(x0, of_record, path, t, lambda: torch.zeros(()), steps=10, end=end)
    moves = [[number for rows in asked for number in rows].count(number) for number in range(3)]
    assert moves == ([3, 10, 6] if discrete else [10, 10, 10])
    for record in range(3):
        one = slice(record, record + 1)
        alone = invert(x0[one], lambda x, t, n=record: predict(x, t) + offset[n], path, t[one], lambda: torch.zeros(()), steps=10, end=end)
        torch.testing.assert_close(x[one], alone, rtol=1e-12, atol=1e-12)


def test_candidates_share_their_noise():
    noise = noise_of(share_noise=True)
    assert torch.equal(noise[:, 0], noise[:, 1])
    assert torch.equal(noise[:, 0], noise[:, 2])
    assert not torch.equal(noise[0], noise[1])


def test_candidates_have_noises_of_their_own_where_they_do_not_share():
    noise = noise_of(share_noise=False)
    # 200 * 36 independent products: mean 0, standard error 1 / sqrt(7200) = 0.012
    assert (noise[:, 0] * noise[:, 1]).mean().abs() < 0.05
    assert (noise[:, 1] * noise[:, 2]).mean().abs() < 0.05


@pytest.mark.parametrize("share_noise", [True, False])
def test_noise_is_standard_normal(share_noise):
    noise = noise_of(share_noise)
    # standard errors over at least 7200 numbers: 0.012 for the mean, 0.017 for the variance
    assert noise.mean().abs() < 0.05
    assert (noise.var() - 1.0).abs() < 0.07


def test_candidates_share_their_time():
    path, x0 = PATHS["epsilon"], latents(6)
    noised = forward(x0, not_called, path, seeded(6), share_noise=False)
    alpha, sigma = (level.view(-1, 1, 1, 1) for level in path.level(noised.t))
    for k in range(2):
        torch.testing.assert_close(noised.x_t[:, k], alpha * x0[:, k] + sigma * noised.target[:, k], **EXACT)
