"""Objectives that place each candidate by itself, against the reference or against the batch, rather than one margin.

A tie (p = 1/2) pulls every log-ratio to its own anchor, or leaves it, instead of pulling the two together.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from diffalign.objectives.base import (
    Divergence,
    ahead,
    both_orders,
    column,
    compared,
    margin,
    own,
    prob_of,
    reference_of,
    surprise,
    weighted,
)

if TYPE_CHECKING:
    from torch import Tensor

    from diffalign.core.types import Scores


@weighted
def bco(s: Scores, *, beta: float, divergence: Divergence = "reverse_kl", coefficient: float = 0.5, centred: bool = True) -> Tensor:
    """Return S(r_w - offset) + S(-(r_l - offset)), S = -log sigmoid, r = beta * log-ratio: a classifier of good and bad.

    BCO (2404.04656 as TRL's `bco_pair`), also the biased NCA of 2402.05369. `offset` is the shift delta of the rewards, which the paper
    takes as their running mean and TRL's pairs leave at zero. `centred` as in `ipo`: without it a `divergence` shifts the rewards (TRL 1.16
    allows none here).
    """
    r = beta * compared(s, divergence, coefficient, centred=centred)
    r = r if s.offset is None else r - s.offset.to(r)[:, None]
    return both_orders(s, lambda first, second: surprise(r[:, first]) + surprise(-r[:, second]))


@weighted
def sppo(s: Scores, *, beta: float) -> Tensor:
    """Return sum_k (u_k - target_k)^2 over the log-ratios u: each is regressed to what its chance of winning says.

    SPPO (2405.00675). With the column `gains`, chances of winning in [0, 1]: half the sum, targets (gain - 1/2) / beta, over any number
    of candidates (as released; beta 1e-3, K = 5, best and worst are trained). Without: targets +-1/(2 beta) (TRL's `sppo_hard`), the label
    deciding the sign; there `prob` below 1 mixes both orders. `offset` is not used: targets are absolute.
    """
    u = compared(s)
    if "gains" in s.columns:
        return _regressed(u, column(s, "gains") - 0.5, beta)
    aim = 0.5 / beta
    return both_orders(s, lambda first, second: (u[:, first] - aim) ** 2 + (u[:, second] + aim) ** 2)


def _regressed(u: Tensor, aim: Tensor, beta: float) -> Tensor:
    """Return half the squared distance (B,) of log-ratios u (B, K) from aim / beta, summed over the candidates."""
    return 0.5 * ((u - aim / beta) ** 2).sum(dim=1)


@weighted
def gpo(s: Scores, *, beta: float) -> Tensor:
    """Return 1/2 sum_k (u_k - gain_k / beta)^2 over the log-ratios u: `sppo` whose targets are preference scores of any scale.

    GPO (2410.02197; beta 1e-3, the target from the released scripts; reconstructed: that no 1/2 is taken from the score). The column
    `gains` is the mean preference score over other answers, above 0 for better than they. Neither `prob` nor `offset` is used.
    """
    return _regressed(compared(s), column(s, "gains"), beta)


@weighted
def apo_zero(s: Scores, *, beta: float) -> Tensor:
    """Return 1 - sigmoid(beta u_w) + sigmoid(beta u_l): raise the preferred, lower the other.

    APO-zero (2408.06266 eq. 7, for pairs whose preferred is better than the model). A tie has no gradient. `offset` is not used.
    """
    r = beta * compared(s)
    return both_orders(s, lambda first, second: (-r[:, first]).sigmoid() + r[:, second].sigmoid())


@weighted
def apo_down(s: Scores, *, beta: float) -> Tensor:
    """Return sigmoid(beta u_w) + 1 - sigmoid(beta (u_w - u_l)): lower both, the dispreferred more.

    APO-down (2408.06266 eq. 8, for pairs whose preferred is worse than the model). `offset` shifts the margin.
    """
    r = beta * compared(s)
    return both_orders(s, lambda first, second: r[:, first].sigmoid() + (-ahead(s, r[:, first] - r[:, second], first)).sigmoid())


@weighted
def d3po(s: Scores, *, beta: float, eps: float = 0.1) -> Tensor:
    """Return -log sigmoid((2p - 1) * beta * margin of log clip(exp(log-ratio), 1 - eps, 1 + eps)); beyond the clip is no gradient.

    D3PO (2311.13231 as released: beta and eps 0.1, one denoising step's log-density as score, the preference in +1 and -1). A tie has
    the constant loss log 2.
    """
    clipped = compared(s).clamp(math.log1p(-eps), math.log1p(eps))
    return surprise((2.0 * prob_of(s) - 1.0) * ahead(s, beta * margin(clipped)))


def _smoothed(z: Tensor, label_smoothing: float) -> Tensor:
    return (1.0 - label_smoothing) * surprise(z) + label_smoothing * surprise(-z)


def _unlabelled(s: Scores) -> None:
    """Raise ValueError for numbers of records where the losses are of ranks."""
    if s.weight is not None or s.offset is not None:
        raise ValueError("the losses of aot belong to ranks within the batch and not to records, which can have no weight or offset")


@weighted
def aot(s: Scores, *, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """Return -log sigmoid(beta * x), x = sorted policy margins - sorted reference margins of the batch: one loss a rank.

    AOT (2406.05882 as TRL's `aot`; beta 0.01 in the paper). Losses depend on the other records, and belong to ranks: `weight` and `offset`
    are refused, `prob` is not used. A batch of one is `dpo`.
    """
    _unlabelled(s)
    x = margin(own(s)).sort().values - margin(reference_of(s)).sort().values
    return _smoothed(beta * x, label_smoothing)


@weighted
def aot_unpaired(s: Scores, *, beta: float, label_smoothing: float = 0.0) -> Tensor:
    """Return -log sigmoid(beta * x), x = sorted log-ratios of the preferred - sorted ones of the dispreferred, within the batch.

    AOT unpaired (2406.05882 as TRL's `aot_unpaired`). As in `aot`, `weight` and `offset` are refused and `prob` is not used.
    """
    _unlabelled(s)
    u = compared(s).sort(dim=0).values
    return _smoothed(beta * margin(u), label_smoothing)


@weighted
def kto(s: Scores, *, beta: float, desirable_weight: float = 1.0, undesirable_weight: float = 1.0) -> Tensor:
    """Return half of w_d (1 - sigmoid(beta (u_w - z0))) + w_u (1 - sigmoid(beta (z0 - u_l))); its mean is that over all answers.

    KTO (2402.01306 as in TRL; beta 0.1 for texts). z0 = max(0, mean log-ratio), over the batch of one process, of texts that have more than
    two candidates from the last, mismatched ones, whose gradient is thrown away. Of two, and of images: from the first two of every record
    (reconstructed from the description of Diffusion-KTO, 2404.04465), of which one record alone says nothing. `offset` is not used: the
    anchor is z0.
    """
    u = compared(s)
    mismatched = s.lengths is not None and u.shape[1] > 2
    z0 = (u[:, -1] if mismatched else u[:, :2]).detach().mean().clamp(min=0.0)

    def loss(first: int, second: int) -> Tensor:
        good, bad = beta * (u[:, first] - z0), beta * (z0 - u[:, second])
        return 0.5 * (desirable_weight * (-good).sigmoid() + undesirable_weight * (-bad).sigmoid())

    return both_orders(s, loss)
