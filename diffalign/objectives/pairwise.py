"""Objectives of a pair that compare with a reference, by a function of the log-ratios or of their margin."""

from __future__ import annotations

from typing import TYPE_CHECKING

from diffalign.objectives.base import log_sigmoid, margin, prob_of

if TYPE_CHECKING:
    from torch import Tensor

    from diffalign.types import Scores


def dpo(s: Scores, *, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """Return -p log sigmoid(z) - (1-p) log sigmoid(-z) with z = beta * margin of the log-ratios.

    DPO (2305.18290 eq. 7), Diffusion-DPO (2311.12908 eq. 14 as released: mean over the latent and one half, beta 5000).
    `prob` and `label_smoothing` (conservative DPO) soften the target p; a tie (p = 1/2) pulls z to zero.
    """
    z = beta * margin(s.log_ratio)
    prob = prob_of(s, label_smoothing)
    return -prob * log_sigmoid(z) - (1.0 - prob) * log_sigmoid(-z)


def ipo(s: Scores, *, tau: float) -> Tensor:
    """Return (signed margin - 1/(2 tau))^2, the aim scaled by 2p - 1 (2310.12036 eq. 17).

    With a diffusion likelihood tau = 5000 aims at the margin that the diffusers script means by `beta_dpo` 2500, whose squared
    loss is four times this one because its error difference carries no one-half.
    """
    sign = 2.0 * prob_of(s) - 1.0
    return (margin(s.log_ratio) - sign / (2.0 * tau)) ** 2


def hinge(s: Scores, *, beta: float) -> Tensor:
    """Return p relu(1 - z) + (1-p) relu(1 + z) with z = beta * margin of the log-ratios (SLiC, 2305.10425, on log-ratios)."""
    z = beta * margin(s.log_ratio)
    prob = prob_of(s)
    return prob * (1.0 - z).relu() + (1.0 - prob) * (1.0 + z).relu()
