"""Objectives that were made for denoising errors."""

from __future__ import annotations

from typing import TYPE_CHECKING

from diffalign.objectives.base import ahead, both_orders, margin, own, pairwise, prob_of, surprise, weighted

if TYPE_CHECKING:
    from torch import Tensor

    from diffalign.core.types import Scores


@weighted
def smpo(s: Scores, *, beta: float, scale: float = 10.0) -> Tensor:
    """Return -log sigmoid(beta * scale * (2p - 1) * margin of the log-ratios): a soft label weighs beta instead of the two sides.

    SmPO (2506.02698 eq. 9 as released; `scale` is its gamma, there the literal 10). A tie has the constant loss log 2 and no
    gradient; a hard label (p = 1, or no `prob`) is DPO at `scale` times beta. Soft labels of a score rarely exceed p = 0.7.
    """
    return surprise((2.0 * prob_of(s) - 1.0) * ahead(s, beta * scale * margin(s.log_ratio)))


def odds_below_one(error: Tensor, snr: float) -> Tensor:
    """Return phi - 1 of MaPO's bounded odds phi = y / (exp(y) - 1), y = snr * error: 0 at zero error, falling to -1 (as released).

    Not phi itself: the margin multiplies small differences of a number near 1 by a thousand.
    """
    y = snr * error
    # Autograd through y / expm1(y) subtracts two numbers near 1/y; below 0.5 the series (next term y^12 / 2e9) keeps every digit.
    small = y.abs() < 0.5
    near, far = y.where(small, y.new_zeros(())), y.where(~small, y.new_ones(())).clamp(max=80.0)
    square = near * near
    series = -near / 2.0 + square / 12.0 * (1.0 - square / 60.0 * (1.0 - square / 42.0 * (1.0 - square / 40.0 * (1.0 - square / 39.6))))
    return series.where(small, far / far.expm1() - 1.0)


@weighted
def mapo(s: Scores, *, beta: float = 0.1, snr: float = 0.5, steps: float = 1000.0) -> Tensor:
    """Return the preferred candidate's error - beta log sigmoid(steps * margin of the bounded odds); no reference is needed.

    MaPO (2406.06424 as released: `snr_value` 0.5 is a constant, not the schedule's, and `steps` is num_train_timesteps). Its beta
    weighs the margin term against the winner's error, so a larger beta moves further from the start: the opposite of DPO's.
    `prob` below 1 shares both terms out between the candidates.
    """
    error = -2.0 * s.policy  # a score is -1/2 mean squared error
    winner = both_orders(s, lambda first, _: error[:, first])
    return winner + beta * pairwise(s, steps * margin(odds_below_one(error, snr)))


@weighted
def denoise(s: Scores) -> Tensor:
    """Return the negative log-likelihood of candidate 0: half the weighted squared error; supervised fine-tuning on the preferred.

    DDPM (2006.11239 eq. 14) for images; for texts the NLL of the completion, summed, or with a length-normalised likelihood the mean over
    the record's tokens (TRL's `sft` is that over the batch's). Neither `prob` nor `offset` is used.
    """
    return -own(s)[:, 0]
