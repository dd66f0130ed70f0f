"""Objectives that were designed for denoising errors, and the scale that keeps the preferred image from getting worse with the other."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from diffalign.objectives.base import (
    Loss,
    both_orders,
    log_sigmoid,
    margin,
    minus_offset,
    neg_log_sigmoid,
    pairwise,
    policy_scores,
    prob_of,
    weighted,
)

if TYPE_CHECKING:
    from torch import Tensor

    from diffalign.core.types import Scores

Utility = Literal["kahneman_tversky", "loss_averse", "risk_seeking"]
ZeroPoint = Literal["batch", "balanced", "neighbour"]
Over = Literal["pair", "batch"]


@weighted
def smpo(s: Scores, *, beta: float, scale: float = 10.0) -> Tensor:
    """Return -log sigmoid(beta * scale * (2p - 1) * margin of the log-ratios): a soft label scales beta instead of mixing both orders.

    SmPO (2506.02698 eq. 9 as released; `scale` is its gamma, in the code the literal 10). A tie has the constant loss log 2 and no
    gradient; with a hard label (p = 1, or no `prob`) it is DPO with `scale` times beta. Soft labels from a score rarely exceed p = 0.7.
    """
    return neg_log_sigmoid((2.0 * prob_of(s) - 1.0) * minus_offset(s, beta * scale * margin(s.log_ratio)))


def odds_below_one(error: Tensor, snr: float) -> Tensor:
    """Return phi - 1 of MaPO's bounded odds phi = y / (exp(y) - 1), y = snr * error: 0 at zero error, falling to -1 (as released).

    It is phi - 1 because `mapo` multiplies differences of phi by a thousand, and phi is near 1, where digits would be lost.
    """
    y = snr * error
    # Autograd through y / expm1(y) subtracts two numbers near 1/y and loses digits; below 0.5 the series (next term y^12 / 2e9) does not.
    small = y.abs() < 0.5
    near, far = y.where(small, y.new_zeros(())), y.where(~small, y.new_ones(())).clamp(max=80.0)
    square = near * near
    series = -near / 2.0 + square / 12.0 * (1.0 - square / 60.0 * (1.0 - square / 42.0 * (1.0 - square / 40.0 * (1.0 - square / 39.6))))
    return series.where(small, far / far.expm1() - 1.0)


@weighted
def mapo(s: Scores, *, beta: float = 0.1, snr: float = 0.5, steps: float = 1000.0) -> Tensor:
    """Return the preferred candidate's error - beta log sigmoid(steps * margin of the bounded odds), without a reference.

    MaPO (2406.06424 as released: `snr_value` 0.5 is a constant, not the schedule's, and `steps` is num_train_timesteps). Its beta
    weighs the margin term against the preferred candidate's error, so a larger beta moves the policy further from its start, the opposite
    of DPO's beta. `prob` below 1 mixes both orders in both terms.
    """
    error = -2.0 * s.policy  # a score is -1/2 mean squared error
    preferred = both_orders(s, lambda first, _: error[:, first])
    return preferred + beta * pairwise(s, steps * margin(odds_below_one(error, snr)))


@weighted
def denoise(s: Scores) -> Tensor:
    """Return the negative log-likelihood of candidate 0: supervised fine-tuning on the preferred candidate.

    For images it is half the weighted squared error (DDPM, 2006.11239 eq. 14). For texts it is the NLL of the completion, summed over its
    tokens, or with a length-normalised likelihood their mean (TRL's `sft` takes the mean over all tokens of the batch). Neither `prob`
    nor `offset` is used.
    """
    return -policy_scores(s)[:, 0]


@weighted
def distil(s: Scores) -> Tensor:
    """Return half the weighted mean square between the outputs of policy and reference for candidate 0: the policy stays at its reference.

    It is the divergence of two denoising Gaussians in the units of scores, the form that knowledge distillation KL(reference || policy)
    takes for denoisers (ours; C3PO, 2402.10893, has it for tokens). Neither `prob` nor `offset` is used.
    """
    return 0.5 * s.deviation[:, 0]


@weighted
def dspo(s: Scores, *, beta: float = 1e-3, form: Literal["sd15", "sdxl"] = "sd15") -> Tensor:
    """Return E_w - beta k (E_w + D_w - R_w) + (beta k)^2 D_w: the preferred image's error against a target that is moved.

    DSPO (Zhu et al., ICLR 2025, xyfb9HHvMe, built on 2311.12908, as released for SD1.5: the square of policy - target - beta k (policy -
    reference)). k = 1 - sigmoid(z) with its gradient, z what `dpo` has inside the sigmoid, through which alone the dispreferred image
    enters; E and R are errors of policy and reference, D the deviation between their outputs. `form` "sdxl" is what the release trains
    SDXL with (beta 1000 to 5000), and is another loss: k^2 D_w, or k^2 while the batch's mean of D_w is below 0.1.
    """
    error, deviation = -2.0 * s.policy, s.deviation
    reference = error - (-2.0 * s.log_ratio)
    near = deviation[:, 0].detach().mean() < 0.1

    def loss(first: int, second: int) -> Tensor:
        k = (-minus_offset(s, beta * (s.log_ratio[:, first] - s.log_ratio[:, second]), first)).sigmoid()
        moved = deviation[:, first]
        if form == "sdxl":
            return k.square() * moved.where(~near, moved.new_ones(()))
        return error[:, first] - beta * k * (error[:, first] + moved - reference[:, first]) + (beta * k).square() * moved

    return both_orders(s, loss)


@weighted
def diffusion_kto(
    s: Scores,
    *,
    beta: float,
    utility: Utility = "kahneman_tversky",
    zero_point: ZeroPoint = "batch",
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Tensor:
    """Return the mean over a record's images of weight * (1 - U(+-beta (log-ratio - z0))), + for the preferred, - for the dispreferred.

    Diffusion-KTO (2404.04465 as released, beta 1000 for whole errors, which is 2000 here). U is sigmoid (Kahneman-Tversky), log sigmoid
    (loss averse) or softplus (risk seeking). z0, without gradient, is the mean log-ratio of the batch, not below 0, or with `zero_point`
    "balanced" the mean of the means over preferred and dispreferred images, or with "neighbour" ("original" in the release) the mean
    under the prompt of the batch's next record, not below 0, which costs a pass of each network more. `prob` is the share of an image's
    label, and of a lone image whether it is liked; `offset` is not used.
    With utility and zero point left as they are it is `kto` on images.
    """
    import torch

    u, prob = s.log_ratio[:, :2], prob_of(s)
    liked = torch.stack([prob, 1.0 - prob], dim=1)[:, : u.shape[1]]
    if zero_point == "batch":
        z0 = u.detach().mean().clamp(min=0.0)
    elif zero_point == "neighbour":
        z0 = _neighbour(s)[:, :2].mean().clamp(min=0.0)
    else:
        z0 = sum((part * u.detach()).sum() / (part.sum() + 1e-6) for part in (liked, 1.0 - liked)) / 2.0
    worth = {"kahneman_tversky": lambda z: z.sigmoid(), "loss_averse": log_sigmoid, "risk_seeking": lambda z: -log_sigmoid(-z)}[utility]
    good, bad = (weight * (1.0 - worth(z)) for weight, z in ((desirable_weight, beta * (u - z0)), (undesirable_weight, beta * (z0 - u))))
    return (liked * good + (1.0 - liked) * bad).mean(dim=1)


def _neighbour(s: Scores) -> Tensor:
    """Return the log-ratios under the neighbours' prompts. Raises ValueError for scores without."""
    if s.neighbour is None:
        raise ValueError("this objective compares with the prompts of other records, and these scores have only those of their own")
    return s.neighbour


def winner_preserving(loss: Loss, *, mu: float, over: Over = "pair") -> Loss:
    """Return a loss of the same value whose slope in the dispreferred image's error is scaled down where it would raise the preferred's.

    SDPO (2511.03317 as released; mu 0.9 for SD1.5, 0.6 for SDXL, 0.2 with `dspo`). See `loser_scale`. It is for pairs of images, on any
    objective: the commonest complaint about Diffusion-DPO is that both errors rise.
    """

    def scaled(s: Scores, **constants: Any) -> Tensor:
        import torch

        scale = loser_scale(s.compared_outputs.policy[:, :2], mu, over).to(s.policy)[:, None]
        winner, loser, further = s.policy.tensor_split([1, 2], dim=1)
        held = loser.detach()
        return loss(replace(s, policy=torch.cat([winner, held + scale * (loser - held), further], dim=1)), **constants)

    return scaled


def loser_scale(residuals: Tensor, mu: float, over: Over) -> Tensor:
    """Return (1 - mu) |g_w|^2 / (g_w . g_l + 1e-9) within [0, 1], or 1 where the gradients do not agree, (B,), without gradient.

    g are the gradients of the two errors in output space, residuals (B, 2, C, H, W) times 2 / n. `over` "batch" makes one scale for all
    pairs of a forward pass, as the release does, which then depends on the batch size; with "pair" each pair's preferred image keeps at
    least the share `mu` of its slope.
    """
    import torch

    pair = residuals.detach().flatten(2)
    if over == "batch":
        pair = pair.transpose(0, 1).flatten(1)[None]
    winner, loser = (2.0 * pair / pair.shape[2]).unbind(dim=1)
    agreement = (winner * loser).sum(dim=1)
    scale = ((1.0 - mu) * winner.square().sum(dim=1) / (agreement + 1e-9)).clamp(0.0, 1.0)
    return torch.where(agreement > 0.0, scale, 1.0).expand(len(residuals))
