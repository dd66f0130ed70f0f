"""Objectives without a reference, which compare the policy's likelihoods of two candidates.

Means are over tokens; for an image the mean is its score, minus half a denoising error, so constants have another scale there. Objectives
that need probabilities are for texts only. Terms of the preferred candidate alone are mixed over both orders by `prob`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from diffalign.objectives.base import (
    both_orders,
    column,
    hinge_loss,
    minus_offset,
    neg_log_sigmoid,
    nll,
    per_token,
    policy_scores,
    require_candidates,
    token_field,
    tokens_of,
    weighted,
)

if TYPE_CHECKING:
    from torch import Tensor

    from diffalign.core.types import Scores

Contrast = Literal["sigmoid", "hinge", "ipo"]


def shaped(x: Tensor, alpha: float) -> Tensor:
    """Return (1 - p^-alpha) / alpha for log p = x, and x for alpha 0 (AlphaPO, 2501.03884). The exponent is clamped at 80."""
    return x if alpha == 0.0 else -(-alpha * x).clamp(max=80.0).expm1() / alpha


def _contrast(s: Scores, x: Tensor, loss: Callable[[Tensor], Tensor], gamma: float = 0.0, label_smoothing: float = 0.0) -> Tensor:
    """Return `loss` of the margin of x (B, K) minus gamma, mixed over both orders; beta is included in x."""
    return both_orders(s, lambda first, second: loss(minus_offset(s, x[:, first] - x[:, second] - gamma, first)), label_smoothing)


@weighted
def simpo(s: Scores, *, beta: float = 2.0, gamma: float = 0.5, alpha: float = 0.0) -> Tensor:
    """Return -log sigmoid(beta * (mean log p_w - mean log p_l) - gamma).

    SimPO (2405.14734 eq. 6: beta 2 to 10, gamma / beta 0.1 to 0.8; as in TRL's CPO trainer with cpo_alpha 0). `alpha` reshapes the mean
    log-probabilities (AlphaPO, 2501.03884, 0.25 there). In the swapped order, gamma is the margin of candidate 1.
    """
    return _contrast(s, beta * shaped(per_token(s, s.policy), alpha), neg_log_sigmoid, gamma)


def cpo_comparison(s: Scores, beta: float, loss_type: Contrast, alpha: float, label_smoothing: float) -> Tensor:
    """Return CPO's loss (B,) without its NLL term; ipo compares means over tokens, as in TRL."""
    x = shaped(per_token(s, s.policy) if loss_type == "ipo" else policy_scores(s), alpha)
    if loss_type == "ipo":
        return both_orders(s, lambda first, second: (x[:, first] - x[:, second] - 1.0 / (2.0 * beta)) ** 2)
    return _contrast(s, beta * x, neg_log_sigmoid if loss_type == "sigmoid" else hinge_loss, label_smoothing=label_smoothing)


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
    """Return -log sigmoid(beta * (log p_w - log p_l)) + cpo_alpha * NLL of the preferred; or the hinge or ipo loss of the same margin.

    CPO (2401.08417 eq. 3, 5; defaults of TRL). `alpha` reshapes the log-probabilities as in `simpo`. The NLL is the mean over the record's
    tokens; TRL takes the mean over the batch's tokens. `offset` and `label_smoothing` are not used by ipo.
    """
    return cpo_comparison(s, beta, loss_type, alpha, label_smoothing) + cpo_alpha * both_orders(s, lambda first, _: nll(s, first))


@weighted
def triple_po(
    s: Scores,
    *,
    beta: float = 0.01,
    alpha: float = 1.0,
    loss_type: Literal["sigmoid", "hinge", "ipo", "tpo-l"] = "sigmoid",
    gamma: float = 0.5,
) -> Tensor:
    """Return CPO's loss of candidates 0 and 1 + alpha * NLL of candidate 2, the gold answer.

    Triple preference optimisation (2405.16681; defaults of TRL). The loss type tpo-l compares means over tokens with a margin gamma: -log
    sigmoid(beta * difference - gamma); the authors' example has gamma 5.4. The NLL is the mean over the record's tokens.
    """
    require_candidates(s, 3, "the gold answer as candidate 2")
    if loss_type == "tpo-l":
        pair_loss = _contrast(s, beta * per_token(s, s.policy), neg_log_sigmoid, gamma)
    else:
        pair_loss = cpo_comparison(s, beta, loss_type, 0.0, 0.0)
    return pair_loss + alpha * nll(s, 2)


@weighted
def slic(s: Scores, *, delta: float = 1.0, sft_weight: float = 0.1) -> Tensor:
    """Return max(0, delta - log p_w + log p_l) + sft_weight * NLL of the preferred per token.

    SLiC-HF (2305.10425 eq. 1; delta 1 and lambda 0.1 as in the HALOs repository, but without its broadcast of a token's NLL over
    sequences). `hinge` is the same loss on log-ratios.
    """
    x = policy_scores(s)

    def loss(first: int, second: int) -> Tensor:
        return (delta - minus_offset(s, x[:, first] - x[:, second], first)).relu() + sft_weight * nll(s, first)

    return both_orders(s, loss)


def log1mexp(x: Tensor) -> Tensor:
    """Return log(1 - e^x) for x < 0, by the numerically exact one of two formulas (Maechler 2012)."""
    split = -math.log(2.0)
    far, near = x.clamp(max=split), x.clamp(min=split)
    return (-far.exp()).log1p().where(x < split, (-near.expm1()).log())


def log_odds(s: Scores) -> Tensor:
    """Return log(p / (1 - p)) (B, K) of the mean likelihood p per token; log p is clamped to one rounding error below 0."""
    import torch

    x = per_token(s, s.policy)
    x = x.clamp(max=-torch.finfo(x.dtype).eps)
    return x - log1mexp(x)


@weighted
def orpo(s: Scores, *, beta: float = 0.1) -> Tensor:
    """Return the NLL per token of prompt and preferred answer - beta * log sigmoid(log-odds of w - log-odds of l).

    ORPO (2403.07691 eq. 6, 7, where beta is called lambda; as in TRL). The odds are of likelihoods per token. Raises ValueError without
    the prompt's log-probabilities, so always for images.
    """
    tokens = tokens_of(s)
    prompt, mask = token_field(tokens.prompt, "prompt"), token_field(tokens.prompt_mask, "prompt_mask")
    counts = tokens.mask.sum(dim=2) + mask.sum(dim=2)
    nll_with_prompt = -(s.policy + (prompt * mask).sum(dim=2)) / counts
    return both_orders(s, lambda first, _: nll_with_prompt[:, first]) + beta * _contrast(s, log_odds(s), neg_log_sigmoid)


@weighted
def asft(s: Scores, *, beta: float = 1.0, sft_weight: float = 1.0, weight: float = 1.0) -> Tensor:
    """Return sft_weight * NLL of the preferred + weight * [S(beta * log-odds of w) + S(-beta * log-odds of l)], S = -log sigmoid.

    ASFT (2409.10571) in the form of 2502.01237 (reconstructed from memory, with its weights). The two candidates are not compared, so
    `offset` is not used. The odds are of likelihoods per token, which images do not have.
    """
    z = beta * log_odds(s)

    def loss(first: int, second: int) -> Tensor:
        return sft_weight * nll(s, first) + weight * (neg_log_sigmoid(z[:, first]) + neg_log_sigmoid(-z[:, second]))

    return both_orders(s, loss)


@weighted
def poft(s: Scores, *, beta: float = 1.0, gamma: float = 0.0) -> Tensor:
    """Return -log sigmoid(beta * (mean log p - teacher) + gamma) of candidate 0 alone; `offset` is used, `prob` is not.

    PoFT (2412.12865 as released). The column `teacher` is the mean log-probability per token of this answer, averaged over aligned
    language models. It is supervised fine-tuning in which an answer counts less once it is likelier under the policy than under them.
    """
    z = beta * (per_token(s, s.policy) - column(s, "teacher"))[:, 0] + gamma
    return neg_log_sigmoid(minus_offset(s, z))
