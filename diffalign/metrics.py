"""What a step says about itself, from `Scores` alone."""

from __future__ import annotations

import torch
from torch import Tensor

from diffalign.objectives.base import margin
from diffalign.types import Scores


def implicit_accuracy(x: Tensor) -> Tensor:
    """Return the share in [0, 1] of rows of (B, K) where candidate 0 scores above candidate 1; ties count one half."""
    gap = margin(x)
    return ((gap > 0).double() + 0.5 * (gap == 0).double()).mean()


@torch.no_grad()
def describe(s: Scores, beta: float = 1.0) -> dict[str, Tensor]:
    """Return scalars by name. Log-ratios are in units of the score (for diffusion: half a mean squared error).

    `rewards/chosen`, `rewards/rejected` and `rewards/margins` are the implicit rewards beta * log-ratio, as TRL names them.

    `log_ratio/chosen` below zero means that the policy explains the preferred candidate worse than the reference does:
    likelihood displacement, which the loss and the accuracy do not show.
    """
    named = {"score/chosen": s.policy[:, 0].mean()}
    if s.policy.shape[1] > 1:
        named["score/rejected"] = s.policy[:, 1].mean()
    if s.policy.shape[1] < 2:
        return named
    if s.reference is None:  # MaPO: the margin is one of scores
        return named | {"implicit_acc": implicit_accuracy(s.policy)}
    ratio = s.log_ratio
    return named | {
        "implicit_acc": implicit_accuracy(ratio),
        "log_ratio/chosen": ratio[:, 0].mean(),
        "log_ratio/rejected": ratio[:, 1].mean(),
        "rewards/chosen": beta * ratio[:, 0].mean(),
        "rewards/rejected": beta * ratio[:, 1].mean(),
        "rewards/margins": beta * margin(ratio).mean(),
    }
