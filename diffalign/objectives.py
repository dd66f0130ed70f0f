"""Pairwise objectives: pure functions `Scores -> (B,)`, one loss a record, averaged by the caller (never before the log-sigmoid).

They serve image and text training alike. Beta multiplies differences of scores: with a diffusion likelihood (score = -1/2 mean
squared error) it is the beta of the Diffusion-DPO release, 2000 to 5000; with token log-probabilities it is near 0.1. A larger
beta keeps the policy closer to the reference. The module imports torch only where it computes, so that names and constants of a
config are checked in milliseconds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from diffalign.types import Scores

Objective = Callable[..., "Tensor"]


def margin(x: Tensor) -> Tensor:
    """Return candidate 0 minus candidate 1 of (B, K): (B,)."""
    return x[:, 0] - x[:, 1]


def _log_sigmoid(z: Tensor) -> Tensor:
    from torch.nn.functional import logsigmoid

    return logsigmoid(z)


def _prob(s: Scores, label_smoothing: float = 0.0) -> Tensor:
    """Return the chance (B,) that candidate 0 is preferred, mixed with its opposite by `label_smoothing`."""
    prob = s.policy[:, 0].new_ones(len(s.policy)) if s.prob is None else s.prob.to(s.policy)
    return prob * (1.0 - 2.0 * label_smoothing) + label_smoothing


def dpo(s: Scores, *, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """Return -p log sigmoid(z) - (1-p) log sigmoid(-z) with z = beta * margin of the log-ratios.

    DPO (2305.18290 eq. 7), Diffusion-DPO (2311.12908 eq. 14 as released: mean over the latent and one half, beta 5000).
    `prob` and `label_smoothing` (conservative DPO) soften the target p; a tie (p = 1/2) pulls z to zero.
    """
    z = beta * margin(s.log_ratio)
    prob = _prob(s, label_smoothing)
    return -prob * _log_sigmoid(z) - (1.0 - prob) * _log_sigmoid(-z)


def ipo(s: Scores, *, tau: float) -> Tensor:
    """Return (signed margin - 1/(2 tau))^2, the aim scaled by 2p - 1 (2310.12036 eq. 17).

    With a diffusion likelihood tau = 5000 aims at the margin that the diffusers script means by `beta_dpo` 2500, whose squared
    loss is four times this one because its error difference carries no one-half.
    """
    sign = 2.0 * _prob(s) - 1.0
    return (margin(s.log_ratio) - sign / (2.0 * tau)) ** 2


def hinge(s: Scores, *, beta: float) -> Tensor:
    """Return p relu(1 - z) + (1-p) relu(1 + z) with z = beta * margin of the log-ratios (SLiC, 2305.10425, on log-ratios)."""
    z = beta * margin(s.log_ratio)
    prob = _prob(s)
    return prob * (1.0 - z).relu() + (1.0 - prob) * (1.0 + z).relu()


def smpo(s: Scores, *, beta: float, scale: float = 10.0) -> Tensor:
    """Return -log sigmoid(beta * scale * (2p - 1) * margin of the log-ratios): a soft label weighs beta instead of the two sides.

    SmPO (2506.02698 eq. 9 as released; `scale` is its gamma, there the literal 10). A tie has the constant loss log 2 and no
    gradient; a hard label (p = 1, or no `prob`) is DPO at `scale` times beta. Soft labels of a score rarely exceed p = 0.7.
    """
    return -_log_sigmoid(beta * scale * (2.0 * _prob(s) - 1.0) * margin(s.log_ratio))


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


def mapo(s: Scores, *, beta: float = 0.1, snr: float = 0.5, steps: float = 1000.0) -> Tensor:
    """Return the preferred candidate's error - beta log sigmoid(steps * margin of the bounded odds); no reference is needed.

    MaPO (2406.06424 as released: `snr_value` 0.5 is a constant, not the schedule's, and `steps` is num_train_timesteps). Its beta
    weighs the margin term against the winner's error, so a larger beta moves further from the start: the opposite of DPO's.
    `prob` below 1 shares both terms out between the candidates.
    """
    error = -2.0 * s.policy  # a score is -1/2 mean squared error
    z = steps * margin(odds_below_one(error, snr))
    prob = _prob(s)
    winner = prob * error[:, 0] + (1.0 - prob) * error[:, 1]
    return winner - beta * (prob * _log_sigmoid(z) + (1.0 - prob) * _log_sigmoid(-z))


def denoise(s: Scores) -> Tensor:
    """Return the negative log-likelihood of candidate 0: half the weighted squared error; supervised fine-tuning on the preferred."""
    return -s.policy[:, 0]


OBJECTIVES: dict[str, Objective] = {
    "dpo": dpo,
    "ipo": ipo,
    "hinge": hinge,
    "smpo": smpo,
    "mapo": mapo,
    "denoise": denoise,
}
REFERENCE_FREE = frozenset({"mapo", "denoise"})  # all others compare with a reference
