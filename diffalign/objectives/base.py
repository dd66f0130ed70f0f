"""What objectives share: the margin, the soft label, the log-sigmoid, and what each needs besides two scores.

Nothing here imports torch before it computes, so that names and constants of a config are checked in milliseconds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

    from diffalign.types import Scores

Objective = Callable[..., "Tensor"]
# How an objective carries over to images, where the log-ratio is half a difference of denoising errors. V: as it is. V+: with the
# denoising error as negative log-likelihood. R: without a reference, so its constants are of another scale. L: a list, under one noise.
# N: not at all; it needs token distributions, lengths or probabilities.
Diffusion = Literal["V", "V+", "R", "L", "N"]


@dataclass(frozen=True, slots=True)
class Facts:
    """What an objective needs besides the policy's scores of two candidates."""

    diffusion: Diffusion = "V"
    reference: bool = True
    candidates: int = 2  # at least so many
    columns: tuple[str, ...] = ()  # of `Scores.columns`, filled from the table's named scores
    tokens: tuple[str, ...] = ()  # fields of `Tokens`
    mismatched: bool = False  # the last candidate is another record's answer (KTO)
    coupled: bool = False  # a record's loss depends on the other records of the batch


def margin(x: Tensor) -> Tensor:
    """Return candidate 0 minus candidate 1 of (B, K): (B,)."""
    return x[:, 0] - x[:, 1]


def log_sigmoid(z: Tensor) -> Tensor:
    from torch.nn.functional import logsigmoid

    return logsigmoid(z)


def prob_of(s: Scores, label_smoothing: float = 0.0) -> Tensor:
    """Return the chance (B,) that candidate 0 is preferred, mixed with its opposite by `label_smoothing`."""
    prob = s.policy[:, 0].new_ones(len(s.policy)) if s.prob is None else s.prob.to(s.policy)
    return prob * (1.0 - 2.0 * label_smoothing) + label_smoothing
