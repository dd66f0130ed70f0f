"""Stored sampler steps: kept as they were drawn, replayed with a ratio of one, and refused by name where they are not."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from diffalign.core.errors import TrainingError
from diffalign.core.types import Labels
from diffalign.models.diffusion.path import FlowPath, VPPath
from diffalign.models.diffusion.rollout import Sampler, StepLikelihood, check_replay, rollout
from diffalign.models.reference import Frozen
from diffalign.objectives import OBJECTIVES
from tests.models.diffusion.test_likelihood import PATH, Scale, call

GUIDED = Sampler("cps", 0.8, guidance=3.5)
CONDITION, EMPTY = {"prompt": torch.tensor([[0.3], [-0.2]])}, {"prompt": torch.zeros(1, 1)}


def drawn(sampler=GUIDED, path=None, model=None, trained=(1, 2), steps=4, dtype=torch.float64):
    """Return (likelihood, latents, stored steps with their conditions) of two prompts, three pictures each."""
    path, model = path or FlowPath(), model or Scale(0.5)
    times = path.solver_times(steps).flip(0)
    likelihood = StepLikelihood(path, call, sampler, times[1])

    def predict(x, label, /, *, empty=False):
        prompt = EMPTY["prompt"].expand(2, 1) if empty else CONDITION["prompt"]
        return model(x.flatten(0, 1), label.repeat_interleave(3), {"prompt": prompt.repeat_interleave(3, dim=0)}).view_as(x)

    def draw(place):
        return torch.randn(2, 3, 4, 2, 2, generator=torch.Generator().manual_seed(place), dtype=dtype)

    x, kept = rollout(draw(99), predict, path, times, sampler, draw, trained)
    advantage = torch.tensor([[1.0, -0.5, -0.5], [0.2, 0.8, -1.0]], dtype=dtype)
    labels = Labels(columns={"advantage": advantage})
    return likelihood, x, [replace(one, condition=CONDITION, empty=EMPTY, labels=labels) for one in kept]


KINDS = {
    "cps": (Sampler("cps", 0.8), FlowPath()),
    "guided": (GUIDED, FlowPath()),
    "bare": (Sampler("cps", 0.8, density="bare"), FlowPath()),
    "flow_sde": (Sampler("flow_sde", 0.7), FlowPath(shift=3.0)),
    "dance": (Sampler("dance", 0.3), FlowPath()),
    "ddim": (Sampler("ddim", 1.0, guidance=4.0), PATH),
}


@pytest.mark.parametrize("name", KINDS)
def test_before_any_update_every_stored_step_has_a_ratio_of_one(name):
    sampler, path = KINDS[name]
    model = Scale(0.5)
    likelihood, _, kept = drawn(sampler, path, model, trained=(0, 1, 2))
    assert len(kept) == 3
    for one in kept:
        s = likelihood.scores(likelihood.score(model, one), None, one)
        torch.testing.assert_close(s.policy, one.old, rtol=0, atol=1e-12)
        check_replay(likelihood, s, one, tolerance=1e-12)
        torch.testing.assert_close(s.steps.divergence, torch.zeros(2, 3, 1, dtype=torch.float64))
        assert torch.equal(s.steps.old[..., 0], one.old)


def test_only_the_trained_steps_have_noise():
    _, deterministic, none = drawn(trained=())
    _, other, _ = drawn(trained=(), sampler=Sampler("cps", 0.1, guidance=3.5))
    assert not none
    assert torch.equal(deterministic, other)
    _, noisy, kept = drawn(trained=(2,))
    assert [round(one.t[0].item(), 6) for one in kept] == [0.5]
    assert not torch.equal(noisy, deterministic)


def test_the_first_update_is_that_of_the_policy_gradient():
    model = Scale(0.5)
    likelihood, _, kept = drawn(model=model)
    s = likelihood.scores(likelihood.score(model, kept[0]), None, kept[0])
    OBJECTIVES["clipped_ratio"](s, low=1e-4).mean().backward()
    advantage, found = s.columns["advantage"], model.weight.grad.item()
    model.zero_grad()
    (-(advantage * likelihood.score(model, kept[0]).score).mean()).backward()
    assert found == pytest.approx(model.weight.grad.item(), rel=1e-6)  # the weight is float32


def test_the_reference_gives_the_divergence_of_its_step_and_its_score():
    model, reference = Scale(0.5), Frozen(Scale(0.4))
    likelihood, _, kept = drawn(Sampler("cps", 0.8), model=model)
    one = kept[0]
    s = likelihood.scores(likelihood.score(model, one), reference.score(likelihood, one), one)
    # cps on a flow: the mean is (1 - t') (x - t v) + c (x + (1 - t) v), so it moves with v by -(1 - t') t + c (1 - t)
    t, to = 0.75, 0.5
    std, c = 0.5 * torch.tensor(0.4 * torch.pi).sin().item(), 0.5 * torch.tensor(0.4 * torch.pi).cos().item()
    moved = (0.1 * one.x * (c * (1.0 - t) - (1.0 - to) * t)).square().flatten(2).mean(dim=2)
    torch.testing.assert_close(s.steps.kl[..., 0], moved / (2.0 * std**2), rtol=1e-6, atol=0)
    assert s.log_ratio.shape == (2, 3)
    d3po = OBJECTIVES["clipped_dpo"](s, beta=0.1)
    assert d3po.shape == (2,)


BROKEN = {
    "its guidance was 3.5 and is 0.0": {"guidance": 0.0},
    "its level was 0.8 and is 0.7": {"level": 0.7},
    "its kind was cps and is ddim": {"kind": "ddim"},
    "its density was density and is bare": {"density": "bare"},
}


@pytest.mark.parametrize("named", BROKEN)
def test_a_replay_that_differs_from_the_rollout_is_refused_by_name(named):
    model = Scale(0.5)
    likelihood, _, kept = drawn(model=model)
    other = replace(likelihood, sampler=replace(GUIDED, **BROKEN[named]))
    with pytest.raises(TrainingError, match=f"instead of 1 before any update: {named}$"):
        check_replay(other, other.scores(other.score(model, kept[0]), None, kept[0]), kept[0])


def test_a_replay_that_differs_by_what_no_setting_tells_names_the_usual_causes():
    likelihood, _, kept = drawn()
    with pytest.raises(TrainingError, match="dropout or train mode, other weights"):
        check_replay(likelihood, likelihood.scores(likelihood.score(Scale(0.6), kept[0]), None, kept[0]), kept[0])
    narrow = replace(kept[0], x=kept[0].x.bfloat16())
    with pytest.raises(TrainingError, match="latents are kept in bfloat16"):
        check_replay(likelihood, likelihood.scores(likelihood.score(Scale(0.5), narrow), None, narrow), narrow)


def test_zero_terminal_snr_can_be_drawn_from():
    path = VPPath.from_config({"prediction_type": "v_prediction", "rescale_betas_zero_snr": True})
    likelihood, x, kept = drawn(Sampler("ddim", 1.0), path, Scale(0.5), trained=(0,))
    assert x.isfinite().all()
    assert likelihood.score(Scale(0.5), kept[0]).score.isfinite().all()
