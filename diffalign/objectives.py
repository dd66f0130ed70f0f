"""Pairwise objectives: pure functions `Scores -> (B,)`, one loss a record, averaged by the caller (never before the log-sigmoid).

They serve image and text training alike. Beta multiplies differences of scores: with a diffusion likelihood (score = -1/2 mean
squared error) it is the beta of the Diffusion-DPO release, 2000 to 5000; with token log-probabilities it is near 0.1. A larger
beta keeps the policy closer to the reference.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from diffalign.types import Scores

Objective = Callable[..., Tensor]


def margin(x: Tensor) -> Tensor:
    """Return candidate 0 minus candidate 1 of (B, K): (B,)."""
    return x[:, 0] - x[:, 1]


def _prob(s: Scores, label_smoothing: float = 0.0) -> Tensor:
    """Return the chance (B,) that candidate 0 is preferred, mixed with its opposite by `label_smoothing`."""
    prob = torch.ones_like(s.policy[:, 0]) if s.prob is None else s.prob.to(s.policy)
    return prob * (1.0 - 2.0 * label_smoothing) + label_smoothing


def dpo(s: Scores, *, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """Return -p log sigmoid(z) - (1-p) log sigmoid(-z) with z = beta * margin of the log-ratios.

    DPO (2305.18290 eq. 7), Diffusion-DPO (2311.12908 eq. 14 as released: mean over the latent and one half, beta 5000).
    `prob` and `label_smoothing` (conservative DPO) soften the target p; a tie (p = 1/2) pulls z to zero.
    """
    z = beta * margin(s.log_ratio)
    prob = _prob(s, label_smoothing)
    return -prob * logsigmoid(z) - (1.0 - prob) * logsigmoid(-z)


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
    return prob * torch.relu(1.0 - z) + (1.0 - prob) * torch.relu(1.0 + z)


def denoise(s: Scores) -> Tensor:
    """Return the negative log-likelihood of candidate 0: half the weighted squared error; supervised fine-tuning on the preferred."""
    return -s.policy[:, 0]


OBJECTIVES: dict[str, Objective] = {
    "dpo": dpo,
    "ipo": ipo,
    "hinge": hinge,
    "denoise": denoise,
}
