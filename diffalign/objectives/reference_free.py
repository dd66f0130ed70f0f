"""Objectives that compare likelihoods themselves: no reference. Means are over tokens; an image, of length 1, has its score.

For images the score is half a denoising error below zero, on a scale of its own; those that need probabilities are for texts alone.
A term of the preferred candidate alone is shared out by `prob`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from diffalign.objectives.base import (
    ahead,
    both_orders,
    column,
    hinged,
    need,
    nll,
    of_tokens,
    own,
    per_token,
    surprise,
    tokens_of,
    weighted,
)

if TYPE_CHECKING:
    from torch import Tensor

    from diffalign.core.types import Scores

Contrast = Literal["sigmoid", "hinge", "ipo"]


def shaped(x: Tensor, alpha: float) -> Tensor:
    """Return (1 - p^-alpha) / alpha of log p = x, x itself at alpha 0 (AlphaPO, 2501.03884). The exponent is held below 80."""
    return x if alpha == 0.0 else -(-alpha * x).clamp(max=80.0).expm1() / alpha


def _contrast(s: Scores, x: Tensor, loss: Callable[[Tensor], Tensor], gamma: float = 0.0, label_smoothing: float = 0.0) -> Tensor:
    """Return `loss` of how far x (B, K), beta in it, leads by more than gamma, in both orders."""
    return both_orders(s, lambda first, second: loss(ahead(s, x[:, first] - x[:, second] - gamma, first)), label_smoothing)


@weighted
def simpo(s: Scores, *, beta: float = 2.0, gamma: float = 0.5, alpha: float = 0.0) -> Tensor:
    """Return -log sigmoid(beta * (mean log p_w - mean log p_l) - gamma).

    SimPO (2405.14734 eq. 6: beta 2 to 10, gamma / beta 0.1 to 0.8; as in TRL's CPO trainer with cpo_alpha 0). `alpha` reshapes the mean
    log-probabilities (AlphaPO, 2501.03884, 0.25 there). The margin gamma is asked of whichever candidate is preferred.
    """
    return _contrast(s, beta * shaped(per_token(s, s.policy), alpha), surprise, gamma)


def preferred_over(s: Scores, beta: float, loss_type: Contrast, alpha: float, label_smoothing: float) -> Tensor:
    """Return CPO's comparison; ipo, as in TRL, always of means over tokens."""
    x = shaped(per_token(s, s.policy) if loss_type == "ipo" else own(s), alpha)
    if loss_type == "ipo":
        return both_orders(s, lambda first, second: (x[:, first] - x[:, second] - 1.0 / (2.0 * beta)) ** 2)
    return _contrast(s, beta * x, surprise if loss_type == "sigmoid" else hinged, label_smoothing=label_smoothing)


@weighted
def cpo(
    s: Scores,
    *,
    beta: float = 0.1,
    cpo_alpha: float = 1.0,
    loss_type: Contrast = "sigmoid",
    alpha: float = 0.0,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Return -log sigmoid(beta * (log p_w - log p_l)) + cpo_alpha * NLL of the preferred; `loss_type` hinge or ipo instead.

    CPO (2401.08417 eq. 3, 5; defaults of TRL). `alpha` reshapes the log-probabilities as in `simpo`. The NLL is the mean over the record's
    tokens; TRL's is that over the batch's. `offset` and `label_smoothing` do not apply to ipo.
    """
    return preferred_over(s, beta, loss_type, alpha, label_smoothing) + cpo_alpha * both_orders(s, lambda first, _: nll(s, first))


@weighted
def triple_po(
    s: Scores,
    *,
    beta: float = 0.01,
    alpha: float = 1.0,
    loss_type: Literal["sigmoid", "hinge", "ipo", "tpo-l"] = "sigmoid",
    gamma: float = 0.5,
) -> Tensor:
    """Return CPO's comparison of candidates 0 and 1 + alpha * NLL of candidate 2, the gold answer.

    Triple preference optimisation (2405.16681; defaults of TRL). tpo-l compares means over tokens and asks for a margin: -log sigmoid(beta
    * difference - gamma); the authors' example has gamma 5.4. The NLL is the mean over the record's tokens.
    """
    need(s, 3, "the gold answer as candidate 2")
    if loss_type == "tpo-l":
        compared = _contrast(s, beta * per_token(s, s.policy), surprise, gamma)
    else:
        compared = preferred_over(s, beta, loss_type, 0.0, 0.0)
    return compared + alpha * nll(s, 2)


@weighted
def slic(s: Scores, *, delta: float = 1.0, sft_weight: float = 0.1) -> Tensor:
    """Return max(0, delta - log p_w + log p_l) + sft_weight * NLL of the preferred per token.

    SLiC-HF (2305.10425 eq. 1; delta 1 and lambda 0.1 of the HALOs repository, whose broadcast of a token's NLL over sequences is not
    copied). `hinge` is the form on log-ratios.
    """
    x = own(s)

    def loss(first: int, second: int) -> Tensor:
        return (delta - ahead(s, x[:, first] - x[:, second], first)).relu() + sft_weight * nll(s, first)

    return both_orders(s, loss)


def log1mexp(x: Tensor) -> Tensor:
    """Return log(1 - e^x) for x < 0, by the branch that keeps its digits (Maechler 2012)."""
    split = -math.log(2.0)
    far, near = x.clamp(max=split), x.clamp(min=split)
    return (-far.exp()).log1p().where(x < split, (-near.expm1()).log())


def log_odds(s: Scores) -> Tensor:
    """Return log(p / (1 - p)) (B, K) of the likelihood per token p, which is held below 1 by one rounding error."""
    import torch

    x = per_token(s, s.policy)
    x = x.clamp(max=-torch.finfo(x.dtype).eps)
    return x - log1mexp(x)


@weighted
def orpo(s: Scores, *, beta: float = 0.1) -> Tensor:
    """Return the NLL of prompt and preferred answer per token - beta * log sigmoid(log-odds of w - log-odds of l), beta being lambda.

    ORPO (2403.07691 eq. 6, 7; as in TRL). Odds are of likelihoods per token. Raises ValueError without the prompt's log-probabilities,
    as for images, which have no probabilities.
    """
    tokens = tokens_of(s)
    prompt, mask = of_tokens(tokens.prompt, "prompt"), of_tokens(tokens.prompt_mask, "prompt_mask")
    counts = tokens.mask.sum(dim=2) + mask.sum(dim=2)
    whole = -(s.policy + (prompt * mask).sum(dim=2)) / counts
    return both_orders(s, lambda first, _: whole[:, first]) + beta * _contrast(s, log_odds(s), surprise)


@weighted
def asft(s: Scores, *, beta: float = 1.0, sft_weight: float = 1.0, weight: float = 1.0) -> Tensor:
    """Return sft_weight * NLL of the preferred + weight * [S(beta * log-odds of w) + S(-beta * log-odds of l)], S = -log sigmoid.

    ASFT (2409.10571) in the form of 2502.01237 (reconstructed from memory, the weight too). Each candidate is placed by itself, so
    `offset` is not used. Odds are of likelihoods per token: not for images.
    """
    z = beta * log_odds(s)

    def loss(first: int, second: int) -> Tensor:
        return sft_weight * nll(s, first) + weight * (surprise(z[:, first]) + surprise(-z[:, second]))

    return both_orders(s, loss)


@weighted
def poft(s: Scores, *, beta: float = 1.0, gamma: float = 0.0) -> Tensor:
    """Return -log sigmoid(beta * (mean log p - teacher) + gamma) of candidate 0 alone; the label is not used, `offset` is.

    PoFT (2412.12865 as released). The column `teacher` is the mean, over aligned language models, of their own mean log-probability per
    token of this answer: supervised fine-tuning that weighs an answer down once the policy likes it better than they do.
    """
    z = beta * (per_token(s, s.policy) - column(s, "teacher"))[:, 0] + gamma
    return surprise(ahead(s, z))
