"""The objectives of training online, and those of outputs, against data/online: losses and gradients to 1e-9 in float64.

Scores are made of the golden outputs as a likelihood makes them, so that a gradient reaches the outputs.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from diffalign.core.types import Residuals, Scores, Steps, Tokens
from diffalign.models.diffusion.sde import divergence, log_density
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
    if case["offset"] == "original":
        s = replace(s, neighbour=0.5 * (tensor(case["error_ref_rolled"]) - tensor(case["error_rolled"]))[:, None])
    constants["zero_point"] = {"none": "batch", "sigmoid": "balanced", "original": "neighbour"}[case["offset"]]
    check(case, OBJECTIVES["diffusion_kto"].loss(s, **constants), error, "grad_error")


@cases("clip_ratio")
def test_the_clipped_ratio_of_steps_is_the_golden_one(case):
    log_prob, old = (tensor(case[name]) for name in ("log_prob", "log_prob_old"))
    advantage = tensor(case["advantage"]).clamp(-case["adv_clip"], case["adv_clip"])
    steps = Steps(log_prob.requires_grad_(), old, advantage=advantage)
    losses = OBJECTIVES["clipped_ratio"](Scores(log_prob.sum(dim=2), steps=steps), low=case["low"], high=case["high"])
    close(losses, case["loss_by_record"])
    check(case, losses, log_prob, "grad_log_prob")


@cases("guard")
def test_grpo_guard_and_flow_dppo_are_the_golden_ones(case):
    """The mean is the leaf of GRPO-Guard, the log-density that of Flow-DPPO."""
    mean, mean_old, following = (tensor(case[name])[:, None] for name in ("mean", "mean_old", "next"))
    count, std = len(mean), case["s"] * case["root_dt"]
    stds = torch.full((count,), std, dtype=torch.float64)
    mean.requires_grad_()
    log_prob, drifted = log_density(following, mean, stds)[..., None], divergence(mean, mean_old, stds)[..., None]
    close(log_prob[:, 0, 0], case["log_prob"])
    close(drifted[:, 0, 0], case["divergence"])
    full = torch.full((count, 1, 1), std, dtype=torch.float64)
    steps = Steps(log_prob, tensor(case["log_prob_old"])[:, None, None], full, full * 0.0 + case["root_dt"] ** 2, drifted)
    s = Scores(log_prob[..., 0], steps=steps, columns={"advantage": tensor(case["advantage"])[:, None]})
    ratio = OBJECTIVES["clipped_ratio"].loss
    losses = ratio(s, low=case["low"], high=case["high"], trust="guard", over_duration=case["divide_by_dt"])
    close(losses, case["losses"], rtol=1e-6)  # differences of large log-probabilities
    close(losses.mean(), case["loss"], rtol=1e-6)
    (gradient,) = torch.autograd.grad(losses.mean(), mean, retain_graph=True)
    close(gradient[:, 0], case["grad_mean"], rtol=1e-6)
    gated = ratio(s, low=case["low"], trust="gate", threshold=case["dppo_threshold"])
    close(gated, case["dppo_losses"], rtol=1e-6)
    close(torch.autograd.grad(gated.mean(), log_prob)[0][:, 0, 0], case["dppo_grad_log_prob"], rtol=1e-6)


NORMALISERS = {"grpo": "own", "tokens": "batch", "fixed": "fixed"}


@cases("token_grpo")
def test_the_clipped_ratio_of_tokens_is_the_golden_one(case):
    log_prob, old, reference, mask = (tensor(case[f"{name}"])[:, None] for name in ("log_prob", "log_prob_old", "log_prob_ref", "mask"))
    tokens = Tokens(log_prob.requires_grad_(), mask.bool(), reference, old=old)
    sums = ((x * mask).sum(dim=2) for x in (log_prob, reference))
    s = Scores(*sums, tokens=tokens, columns={"advantage": tensor(case["advantage"])[:, None]})
    constants = {"low": case["low"], "high": case["high"], "kl": case["kl"], "length": case["longest"]}
    level = {"token": "element", "sequence": "sequence"}[case["level"]]
    losses = OBJECTIVES["clipped_ratio"].loss(s, **constants, level=level, normaliser=NORMALISERS[case["norm"]])
    check(case, losses, log_prob, "grad_log_prob")


@cases("clipped_pair")
def test_d3po_and_spo_are_clipped_dpo_on_the_log_densities_of_steps(case):
    log_prob = tensor(case["log_prob"]).requires_grad_()
    human = tensor(case["human"])
    s = Scores(log_prob, tensor(case["log_prob_old"]), prob=0.5 + 0.5 * human[:, 0])
    check(case, OBJECTIVES["clipped_dpo"](s, beta=case["beta"], eps=case["eps"]), log_prob, "grad_log_prob")
