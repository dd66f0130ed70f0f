"""Objectives that read every token of a completion: for texts alone. An image has no tokens; weights over its area would be another thing.

Sums run over the completion's tokens; all but `wpo`, whose weight has no unit, refuse a length-normalised likelihood, as their papers
have sums. All honour `prob` and `offset`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from diffalign.objectives.base import (
    ahead,
    both_orders,
    compared,
    given_reference,
    margin,
    of_tokens,
    pairwise,
    summed,
    surprise,
    tokens_of,
    weighted,
)

if TYPE_CHECKING:
    from torch import Tensor

    from diffalign.core.types import Scores

Mask = Literal["none", "activation"]


def divergence_of(s: Scores) -> Tensor:
    """Return the sum (B, K) of KL(reference || policy) over the tokens of each completion."""
    tokens = tokens_of(s)
    return (of_tokens(tokens.kl, "kl") * tokens.mask).sum(dim=2)


@weighted
def tdpo(s: Scores, *, beta: float = 0.1, alpha: float | None = 0.5) -> Tensor:
    """Return -log sigmoid(beta * (margin - alpha * (K_l - K_w))), K = sum of KL(reference || policy), K of the preferred without gradient.

    TDPO2 (2404.11999 as in AlignDistil's repository: beta 0.1, alpha 0.5). alpha None is TDPO1: no factor, and both K have a gradient.
    """
    u, kl = summed(s).log_ratio, divergence_of(s)

    def loss(first: int, second: int) -> Tensor:
        extra = kl[:, second] - kl[:, first] if alpha is None else alpha * (kl[:, second] - kl[:, first].detach())
        return surprise(ahead(s, beta * (u[:, first] - u[:, second] - extra), first))

    return both_orders(s, loss)


@weighted
def wpo(s: Scores, *, beta: float = 0.01, clamp: bool = True) -> Tensor:
    """Return `dpo` times the weights of both candidates, w = exp(mean over tokens of [log p_t - log sum_v p_v^2]), without gradient.

    WPO (2406.11827 as released: beta 0.01, the product at most 1); `clamp` false is TRL's `use_weighting`. A completion that the policy
    would hardly write counts little. With a length-normalised likelihood the margin alone is of means, as in TRL's `sigmoid_norm`.
    """
    tokens = tokens_of(s)
    surplus = (tokens.policy.detach() - of_tokens(tokens.collision, "collision")) * tokens.mask
    weight = (surplus.sum(dim=2) / tokens.mask.sum(dim=2))[:, :2].sum(dim=1).exp()
    return (weight.clamp(max=1.0) if clamp else weight) * pairwise(s, beta * margin(compared(s)))


def token_weights(s: Scores, mask: Mask) -> Tensor:
    """Return the weight (B, K, L) of every token: 1, or its share of the reference's largest activation; 0 beyond the completion."""
    tokens = tokens_of(s)
    weights = tokens.mask.to(tokens.policy)
    return weights if mask == "none" else weights * of_tokens(tokens.activation, "activation")


def token_ratios(s: Scores) -> Tensor:
    """Return log policy - log reference (B, K, L) of every token. Raises ValueError where the method has no reference."""
    given_reference(summed(s))
    tokens = tokens_of(s)
    return tokens.policy - of_tokens(tokens.reference, "reference")


@weighted
def sparse_po(s: Scores, *, beta: float = 0.1, mask: Mask = "activation") -> Tensor:
    """Return -log sigmoid(beta * margin over the pair of sum_t m_t (u_t + KL_t)), u_t the tokens' log-ratios, KL_t of reference || policy.

    SparsePO (2410.05102; reconstructed from memory, the idea from its abstract) with one mask for both terms. mask none is TDPO1;
    activation is the size of the reference's last hidden state over the largest of the completion (the paper's is of several layers, and
    it learns masks as well).
    """
    kl = of_tokens(tokens_of(s).kl, "kl")
    return pairwise(s, beta * margin((token_weights(s, mask) * (token_ratios(s) + kl)).sum(dim=2)))


@weighted
def tab_po(s: Scores, *, beta: float = 0.1, mask: Mask = "none", barrier: float = 0.1, threshold: float = 0.5) -> Tensor:
    """Return -log sigmoid(beta * margin of sum_t m_t u_t) + barrier * mean over the preferred's tokens of m_t [p_t < threshold] (-log p_t).

    TAB-PO (2603.00025): one reading of its abstract; weights, barrier and threshold are unknown, and all tokens count as critical.
    """
    tokens, weights = tokens_of(s), token_weights(s, mask)
    unsure = tokens.policy.detach().exp() < threshold
    barriers = -(weights * unsure * tokens.policy).sum(dim=2) / tokens.mask.sum(dim=2)
    return pairwise(s, beta * margin((weights * token_ratios(s)).sum(dim=2))) + barrier * both_orders(
        s, lambda first, _: barriers[:, first]
    )
