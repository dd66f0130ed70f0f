"""Objectives that were designed for denoising errors."""

from __future__ import annotations

from typing import TYPE_CHECKING

from diffalign.objectives.base import both_orders, margin, minus_offset, neg_log_sigmoid, pairwise, policy_scores, prob_of, weighted

if TYPE_CHECKING:
    from torch import Tensor

    from diffalign.core.types import Scores


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
