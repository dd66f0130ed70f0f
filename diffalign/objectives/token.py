"""Objectives that use the log-probability of every token of a completion, so they are for texts only.

They add up tokens, as their papers do, and raise ValueError under a length-normalised likelihood; `wpo`, whose weight has no unit, does
not. All use `prob` and `offset`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from diffalign.objectives.base import (
    both_orders,
    log_ratios,
    margin,
    minus_offset,
    neg_log_sigmoid,
    pairwise,
    require_reference,
    require_sums,
    token_field,
    tokens_of,
    weighted,
)

if TYPE_CHECKING:
    from torch import Tensor

    from diffalign.core.types import Scores

Mask = Literal["none", "activation"]


def sequence_kl(s: Scores) -> Tensor:
    """Return the sum (B, K) of KL(reference || policy) over the tokens of each completion."""
    tokens = tokens_of(s)
    return (token_field(tokens.kl, "kl") * tokens.mask).sum(dim=2)


@weighted
def tdpo(s: Scores, *, beta: float = 0.1, alpha: float | None = 0.5) -> Tensor:
    """Return -log sigmoid(beta * (margin - alpha * (K_l - K_w))), K = sum over tokens of KL(reference || policy).

    TDPO2 (2404.11999 as in AlignDistil's repository: beta 0.1, alpha 0.5); K_w has no gradient. With alpha None it is TDPO1: no factor,
    and both K have a gradient.
    """
    u, kl = require_sums(s).log_ratio, sequence_kl(s)

    def loss(first: int, second: int) -> Tensor:
        extra = kl[:, second] - kl[:, first] if alpha is None else alpha * (kl[:, second] - kl[:, first].detach())
        return neg_log_sigmoid(minus_offset(s, beta * (u[:, first] - u[:, second] - extra), first))

    return both_orders(s, loss)


@weighted
def wpo(s: Scores, *, beta: float = 0.01, clamp: bool = True) -> Tensor:
    """Return `dpo` times w of both candidates, w = exp(mean over tokens of [log p_t - log sum_v p_v^2]), without gradient.

    WPO (2406.11827 as released: beta 0.01, the product of the weights at most 1); without `clamp` it is TRL's `use_weighting`. Completions
    that are improbable under the policy count little. With a length-normalised likelihood only the margin is made of means, as in TRL's
    `sigmoid_norm`.
    """
    tokens = tokens_of(s)
    surplus = (tokens.policy.detach() - token_field(tokens.collision, "collision")) * tokens.mask
    weight = (surplus.sum(dim=2) / tokens.mask.sum(dim=2))[:, :2].sum(dim=1).exp()
    return (weight.clamp(max=1.0) if clamp else weight) * pairwise(s, beta * margin(log_ratios(s)))


def token_weights(s: Scores, mask: Mask) -> Tensor:
    """Return the weight (B, K, L) of every token: 1, or with `mask` "activation" that of `Tokens`; 0 after the completion's end."""
    tokens = tokens_of(s)
    weights = tokens.mask.to(tokens.policy)
    return weights if mask == "none" else weights * token_field(tokens.activation, "activation")


def token_ratios(s: Scores) -> Tensor:
    """Return log policy - log reference (B, K, L) of every token. Raises ValueError if the method has no reference."""
    require_reference(require_sums(s))
    tokens = tokens_of(s)
    return tokens.policy - token_field(tokens.reference, "reference")


@weighted
def sparse_po(s: Scores, *, beta: float = 0.1, mask: Mask = "activation") -> Tensor:
    """Return our reading of SparsePO: -log sigmoid(beta * margin of sum_t m_t (u_t + KL_t)) with one mask m, which is not learned.

    u_t is the token's log-ratio, KL_t its KL(reference || policy). SparsePO (2410.05102) is reconstructed from its abstract and from
    memory: it reads several layers, may mask the two terms differently, and also learns masks. With `mask` none it is TDPO1; activation
    is the size of the reference's last hidden state, divided by the largest in the completion.
    """
    kl = token_field(tokens_of(s).kl, "kl")
    return pairwise(s, beta * margin((token_weights(s, mask) * (token_ratios(s) + kl)).sum(dim=2)))


@weighted
def tab_po(s: Scores, *, beta: float = 0.1, mask: Mask = "none", barrier: float = 0.1, threshold: float = 0.5) -> Tensor:
    """Return our reading of TAB-PO's abstract: -log sigmoid(beta * margin of sum_t m_t u_t) + a barrier for improbable tokens.

    The barrier is `barrier` * the mean over the preferred completion of m_t [p_t < threshold] (-log p_t). The abstract of TAB-PO
    (2603.00025) states neither the weights m nor the barrier nor the threshold, and weighs critical tokens; here every token counts as one.
    """
    tokens, weights = tokens_of(s), token_weights(s, mask)
    improbable = tokens.policy.detach().exp() < threshold
    barriers = -(weights * improbable * tokens.policy).sum(dim=2) / tokens.mask.sum(dim=2)
    return pairwise(s, beta * margin((weights * token_ratios(s)).sum(dim=2))) + barrier * both_orders(
        s, lambda first, _: barriers[:, first]
    )
