"""Objectives of each candidate's log-ratio against an anchor (zero, a target, or the batch), rather than of the margin of a pair.

A tie (p = 1/2) pulls each log-ratio to its anchor, or has no gradient; it does not pull the two log-ratios together.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from diffalign.objectives.base import (
    Divergence,
    both_orders,
    column,
    log_ratios,
    margin,
    minus_offset,
    neg_log_sigmoid,
    policy_scores,
    prob_of,
    reference_scores,
    weighted,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from diffalign.core.types import Scores


@weighted
def bco(s: Scores, *, beta: float, divergence: Divergence = "reverse_kl", coefficient: float = 0.5, centred: bool = True) -> Tensor:
    """Return S(r_w - offset) + S(-(r_l - offset)), S = -log sigmoid, r = beta * log-ratio: a binary classifier of good and bad.

    BCO (2404.04656 as TRL's `bco_pair`), also the biased NCA of 2402.05369. `offset` is the shift delta of the rewards, which is their
    running mean in the paper and zero in TRL. `centred` as in `ipo`: without it a `divergence` shifts the rewards (TRL 1.16 allows no
    divergence here). A record of one candidate has the one term that `prob` says: S(r - offset) of liked, S(-(r - offset)) of disliked.
    """
    r = beta * log_ratios(s, divergence, coefficient, centred=centred)
    r = r if s.offset is None else r - s.offset.to(r)[:, None]
    if r.shape[1] == 1:
        return _of_one(s, lambda sign: neg_log_sigmoid(sign * r[:, 0]))
    return both_orders(s, lambda first, second: neg_log_sigmoid(r[:, first]) + neg_log_sigmoid(-r[:, second]))


def _of_one(s: Scores, loss: Callable[[float], Tensor]) -> Tensor:
    """Return p f(1) + (1 - p) f(-1) of records with one candidate, where f takes 1 for a liked and -1 for a disliked one."""
    prob = prob_of(s)
    return prob * loss(1.0) + (1.0 - prob) * loss(-1.0)


@weighted
def sppo(s: Scores, *, beta: float) -> Tensor:
    """Return sum_k (u_k - target_k)^2 over the log-ratios u: each is regressed to a target that its probability of winning sets.

    SPPO (2405.00675). With the column `gains`, probabilities of winning in [0, 1]: half the sum, with targets (gain - 1/2) / beta, over
    any number of candidates (as released; beta 1e-3, K = 5, of which the best and the worst are trained). Without it: targets 1/(2 beta)
    for the preferred and -1/(2 beta) for the dispreferred (TRL's `sppo_hard`); `prob` below 1 mixes both orders. `offset` is not used.
    """
    u = log_ratios(s)
    if "gains" in s.columns:
        return _half_squared_distance(u, column(s, "gains") - 0.5, beta)
    target = 0.5 / beta
    return both_orders(s, lambda first, second: (u[:, first] - target) ** 2 + (u[:, second] + target) ** 2)


def _half_squared_distance(u: Tensor, targets: Tensor, beta: float) -> Tensor:
    """Return half the squared distance (B,) of log-ratios u (B, K) from targets / beta, summed over the candidates."""
    return 0.5 * ((u - targets / beta) ** 2).sum(dim=1)


@weighted
def gpo(s: Scores, *, beta: float) -> Tensor:
    """Return 1/2 sum_k (u_k - gain_k / beta)^2 over the log-ratios u: `sppo` with preference scores of any scale as targets.

    GPO (2410.02197; beta 1e-3, the target from the released scripts; reconstructed: that 1/2 is not subtracted from the score). The
    column `gains` is the mean preference score against other answers, above 0 if it is the better one. Neither `prob` nor `offset` is
    used.
    """
    return _half_squared_distance(log_ratios(s), column(s, "gains"), beta)


@weighted
def apo_zero(s: Scores, *, beta: float) -> Tensor:
    """Return 1 - sigmoid(beta u_w) + sigmoid(beta u_l): raise the preferred, lower the dispreferred.

    APO-zero (2408.06266 eq. 7, for pairs whose preferred is better than the model). A tie has no gradient. `offset` is not used.
    """
    r = beta * log_ratios(s)
    return both_orders(s, lambda first, second: (-r[:, first]).sigmoid() + r[:, second].sigmoid())


@weighted
def apo_down(s: Scores, *, beta: float) -> Tensor:
    """Return sigmoid(beta u_w) + 1 - sigmoid(beta (u_w - u_l)): lower both, the dispreferred more.

    APO-down (2408.06266 eq. 8, for pairs whose preferred is worse than the model). `offset` shifts the margin.
    """
    r = beta * log_ratios(s)
    return both_orders(s, lambda first, second: r[:, first].sigmoid() + (-minus_offset(s, r[:, first] - r[:, second], first)).sigmoid())


@weighted
def clipped_dpo(s: Scores, *, beta: float, eps: float = 0.1) -> Tensor:
    """Return D3PO's loss of a step: -log sigmoid((2p - 1) * beta * margin of log clip(exp(log-ratio), 1 - eps, 1 + eps)).

    Clipped ratios have no gradient, and a tie has the constant loss log 2. This is the loss of D3PO (2311.13231 as released, with beta and
    eps 0.1), and its method where scores are log-densities of the steps by which the model drew the images: online, with `rollout: ddim`.
    Log-ratios of noised images are near 0.001: with an eps that is not as small nothing is clipped, and on hard labels this is `dpo`.
    """
    clipped = log_ratios(s).clamp(math.log1p(-eps), math.log1p(eps))
    return neg_log_sigmoid((2.0 * prob_of(s) - 1.0) * minus_offset(s, beta * margin(clipped)))


def _smoothed(z: Tensor, label_smoothing: float) -> Tensor:
    return (1.0 - label_smoothing) * neg_log_sigmoid(z) + label_smoothing * neg_log_sigmoid(-z)


def _refuse_weights_and_offsets(s: Scores) -> None:
    """Raise ValueError if records have weights or offsets."""
    if s.weight is not None or s.offset is not None:
        raise ValueError("the losses of aot belong to ranks within the batch, not to records, so records can have no weight or offset")


@weighted
def aot(s: Scores, *, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """Return -log sigmoid(beta * x), x = sorted policy margins - sorted reference margins of the batch: one loss per rank.

    AOT (2406.05882 as TRL's `aot`; beta 0.01 in the paper). A loss belongs to a rank within the batch, not to a record, so `weight` and
    `offset` raise ValueError, and `prob` is not used. For a batch of one record it is `dpo`.
    """
    _refuse_weights_and_offsets(s)
    x = margin(policy_scores(s)).sort().values - margin(reference_scores(s)).sort().values
    return _smoothed(beta * x, label_smoothing)


@weighted
def aot_unpaired(s: Scores, *, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """Return -log sigmoid(beta * x), x = sorted log-ratios of the preferred - sorted log-ratios of the dispreferred, within the batch.

    AOT unpaired (2406.05882 as TRL's `aot_unpaired`). As in `aot`, `weight` and `offset` raise ValueError, and `prob` is not used.
    """
    _refuse_weights_and_offsets(s)
    u = log_ratios(s).sort(dim=0).values
    return _smoothed(beta * margin(u), label_smoothing)


@weighted
def kto(s: Scores, *, beta: float, desirable_weight: float = 1.0, undesirable_weight: float = 1.0) -> Tensor:
    """Return half of w_d (1 - sigmoid(beta (u_w - z0))) + w_u (1 - sigmoid(beta (z0 - u_l))), so that the mean is one over all answers.

    KTO (2402.01306 as in TRL; beta 0.1 for texts). z0 = max(0, mean log-ratio over the batch of one process), without gradient. For texts
    with more than two candidates the mean is over the last ones, which are answers to other prompts. Otherwise, and for images, it is over
    the first two candidates of every record, as in the release of Diffusion-KTO (2404.04465), whose beta multiplies whole errors: its 1000
    is 2000 here. A batch should then have more than one record. `offset` is not used: the anchor is z0. A record of one candidate (beside
    the mismatched one) has the one term that `prob` says, not halved: it is one answer.
    """
    u = log_ratios(s)
    mismatched = s.mismatched or (s.lengths is not None and u.shape[1] > 2)
    z0 = (u[:, -1] if mismatched else u[:, :2]).detach().mean().clamp(min=0.0)
    if u.shape[1] - s.mismatched == 1:
        weight = {1.0: desirable_weight, -1.0: undesirable_weight}
        return _of_one(s, lambda sign: weight[sign] * (-sign * beta * (u[:, 0] - z0)).sigmoid())

    def loss(first: int, second: int) -> Tensor:
        good, bad = beta * (u[:, first] - z0), beta * (z0 - u[:, second])
        return 0.5 * (desirable_weight * (-good).sigmoid() + undesirable_weight * (-bad).sigmoid())

    return both_orders(s, loss)
