"""The objectives of training online, and those of outputs, against data/online: losses and gradients to 1e-9 in float64.

Scores are made of the golden outputs as a likelihood makes them, so that a gradient reaches the outputs.
"""

from __future__ import annotations

import pytest
import torch

from diffalign.core.types import Residuals, Scores
from diffalign.objectives import OBJECTIVES
from diffalign.objectives.diffusion import loser_scale, winner_preserving
from tests.golden.online import close, golden, tensor


def score(residual):
    return -0.5 * residual.square().flatten(2).mean(dim=2)


def scored(policy, reference=None, start=None, old=None, sigma=None, **fields):
    """Return the scores of residuals (B, K, C, H, W)."""
    sigma = torch.ones(len(policy), dtype=torch.float64) if sigma is None else sigma
    kept = Residuals(policy, sigma, reference, start)
    their, before = (None if x is None else score(x) for x in (reference, old))
    return Scores(score(policy), their, old=before, residuals=kept, **fields)


def cases(kind):
    return pytest.mark.parametrize("case", golden(kind).values(), ids=list(golden(kind)))


def outputs(case, *names):
    """Return the outputs (B, 1, C, H, W) by their names, the first with gradient, and what each misses the velocity by."""
    found = [tensor(case[name]) for name in names]
    target = tensor(case["noise"]) - tensor(case["x0"])
    found, target = ([x if x.dim() == 5 else x[:, None] for x in group] for group in (found, [target]))
    return found[0].requires_grad_(), [x - target[0] for x in found]


def check(case, losses, leaf, name="grad_v"):
    """Compare the mean loss, and its gradient in the leaf with the one of that name."""
    close(losses.mean(), case["loss"])
    (gradient,) = torch.autograd.grad(losses.mean(), leaf)
    close(gradient.reshape(tensor(case[name]).shape), case[name])


@cases("awm")
def test_awm_is_the_golden_one(case):
    output, residuals = outputs(case, "output", "output_ema", "output_ref", "output_old")
    s = scored(*residuals, sigma=tensor(case["t"]), columns={"advantage": tensor(case["advantage"])[:, None]})
    constants = {"weighting": case["weighting"], "power": case["power"], "clip": case["clip"]}
    check(case, OBJECTIVES["awm"].loss(s, **constants, kl=case["kl"], reference_kl=case["ema_kl"]), output)


@cases("dgpo")
def test_dgpo_is_the_golden_one(case):
    output, residuals = outputs(case, "output", "output_ref", "output_old")
    s = scored(*residuals[:2], old=residuals[2], columns={"advantage": tensor(case["advantage"])})
    check(case, OBJECTIVES["dgpo"](s, beta=case["beta"], clip=case["clip"], kl=case["kl"]), output)


@cases("dgpo")
def test_the_gradient_of_dgpo_is_that_of_dpo_on_the_group(case):
    output, residuals = outputs(case, "output", "output_ref")
    advantage = tensor(case["advantage"])
    s = scored(*residuals, columns={"advantage": advantage})
    group = -torch.nn.functional.logsigmoid(2.0 * case["beta"] * (advantage * s.log_ratio).mean(dim=1)) / case["beta"]
    released = OBJECTIVES["dgpo"](s, beta=case["beta"], kl=0.0)
    first, second = (torch.autograd.grad(loss.sum(), output, retain_graph=True)[0] for loss in (group, released))
    torch.testing.assert_close(first, second, rtol=1e-9, atol=1e-15)


SPACES = {"code": "adaptive", "x0": "x0", "velocity": "output"}


@cases("nft")
def test_diffusion_nft_is_the_golden_one_in_every_space(case):
    output, residuals = outputs(case, "output", "output_old", "output_ref")
    s = scored(*residuals, sigma=tensor(case["t"]), columns={"advantage": tensor(case["advantage"])[:, None]})
    constants = {"beta": case["beta"], "advantage_clip": case["adv_clip"], "kl": case["kl"]}
    check(case, OBJECTIVES["diffusion_nft"].loss(s, **constants, space=SPACES[case["form"]]), output)


def pairs(case):
    """Return the outputs (B, 2, C, H, W) with gradient, and what policy and reference miss their targets by."""
    policy, reference, target = (
        torch.stack([tensor(case[f"{kind}_{side}"]) for side in "wl"], dim=1) for kind in ("pred", "ref", "target")
    )
    policy.requires_grad_()
    return policy, policy - target, reference - target


@cases("dspo")
def test_dspo_is_the_golden_one(case):
    output, *residuals = pairs(case)
    s = scored(*residuals)
    losses = OBJECTIVES["dspo"](s, beta=case["beta"], form="sdxl" if case["sdxl"] else "sd15")
    close(case["beta"] * (s.log_ratio[:, 0] - s.log_ratio[:, 1]), case["inside"])
    (gradient,) = torch.autograd.grad(losses.mean(), output)
    close(losses.mean(), case["loss"])
    close(gradient[:, 0], case["grad_pred_w"])
    close(gradient[:, 1], case["grad_pred_l"])


@cases("sdpo")
def test_the_winner_preserving_scale_is_the_golden_one(case):
    output, *residuals = pairs(case)
    loss = winner_preserving(OBJECTIVES["dpo"].loss, mu=case["mu"], over="pair" if case["per_pair"] else "batch")
    close(loser_scale(residuals[0], case["mu"], "pair" if case["per_pair"] else "batch"), case["scale"])
    losses, unscaled = loss(scored(*residuals), beta=case["beta"]), OBJECTIVES["dpo"](scored(*residuals), beta=case["beta"])
    assert torch.equal(losses, unscaled)
    close(losses.mean(), case["loss"])
    (gradient,), (plain,) = (torch.autograd.grad(values.mean(), output, retain_graph=True) for values in (losses, unscaled))
    close(gradient[:, 0], case["grad_pred_w"])
    close(gradient[:, 1], case["grad_pred_l"])
    close(plain[:, 1], case["grad_pred_l_unscaled"])


UTILITIES = {"sigmoid": "kahneman_tversky", "loss_averse": "loss_averse", "risk_seeking": "risk_seeking"}


@cases("diffusion_kto")
def test_diffusion_kto_is_the_golden_one(case):
    error, reference = (tensor(case[name])[:, None] for name in ("error", "error_ref"))
    error.requires_grad_()
    s = Scores(-0.5 * error, -0.5 * reference, prob=tensor(case["labels"]))
    weights = {"desirable_weight": case["weight_pos"], "undesirable_weight": case["weight_neg"]}
    constants = {"beta": 2.0 * case["beta"], "utility": UTILITIES[case["halo"]], **weights}
    if case["offset"] == "original":  # a pass under the neighbour's prompt, which no likelihood makes here
        rolled = (tensor(case["error_ref_rolled"]) - tensor(case["error_rolled"])).mean().clamp(min=0.0)
        close(rolled, case["zero_point"])
        return
    constants["zero_point"] = {"none": "batch", "sigmoid": "balanced"}[case["offset"]]
    check(case, OBJECTIVES["diffusion_kto"].loss(s, **constants), error, "grad_error")
