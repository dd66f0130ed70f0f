"""Objectives of lists of 2 to 16 candidates, which are ranked by the column `gains` (rewards or probabilities of winning) or by order.

Ranks and gains have no gradient. Candidates of equal gain keep their order, best first, where an order is needed, and form no pair where
pairs are compared. `prob` is used only for two candidates without gains, `offset` only where a docstring says so.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from diffalign.core.errors import ConfigError
from diffalign.objectives.base import (
    Divergence,
    column,
    log_ratios,
    log_sigmoid,
    minus_offset,
    neg_log_sigmoid,
    per_token,
    prob_of,
    weighted,
)

if TYPE_CHECKING:
    from torch import Tensor

    from diffalign.core.types import Scores


def log_target(s: Scores, temperature: float, label_smoothing: float = 0.0) -> Tensor:
    """Return the log of softmax(gains / temperature) (B, K); for two candidates without gains the log of (p, 1-p), smoothed."""
    import torch

    if "gains" in s.columns or s.policy.shape[1] != 2:
        return (column(s, "gains") / temperature).log_softmax(dim=1)
    prob = prob_of(s)
    # Each side is smoothed separately, because 1 - (1 - e) would lose the digits of e.
    sides = (x * (1.0 - 2.0 * label_smoothing) + label_smoothing for x in (prob, 1.0 - prob))
    return torch.stack(list(sides), dim=1).log()


def with_offset(s: Scores, x: Tensor) -> Tensor:
    """Return x (B, K) with the record's offset subtracted from candidate 0."""
    import torch

    return x if s.offset is None else torch.cat([minus_offset(s, x[:, 0])[:, None], x[:, 1:]], dim=1)


def cross_entropy(s: Scores, logits: Tensor, temperature: float) -> Tensor:
    """Return the cross-entropy (B,) of `log_target` and softmax(logits); `offset` is subtracted from candidate 0."""
    return -(log_target(s, temperature).exp() * with_offset(s, logits).log_softmax(dim=1)).sum(dim=1)


@weighted
def exo(
    s: Scores,
    *,
    beta: float,
    label_smoothing: float = 1e-3,
    temperature: float = 1.0,
    divergence: Divergence = "reverse_kl",
    coefficient: float = 0.5,
) -> Tensor:
    """Return KL(softmax(beta * log-ratios) || target): the reverse of what `dpo` and `infonca` minimise.

    EXO (2402.00856). With gains the target is softmax(gains / temperature) (EXO-rw). Without, it is (p, 1-p), smoothed by
    `label_smoothing` (EXO-pref eq. 16 as TRL's `exo_pair`), which must lie in (0, 1/2) because the KL is infinite at 0; the authors'
    code has log-targets 0 and -10 instead. `offset` is subtracted from candidate 0. For lists, name the gains in `scores`.
    """
    if not 0.0 < label_smoothing < 0.5:
        raise ConfigError(
            f"exo: `label_smoothing` is {label_smoothing}; expected a share in (0, 0.5), because the KL to a hard label is infinite"
        )
    logs = with_offset(s, beta * log_ratios(s, divergence, coefficient)).log_softmax(dim=1)
    return (logs.exp() * (logs - log_target(s, temperature, label_smoothing))).sum(dim=1)


@weighted
def infonca(s: Scores, *, beta: float, temperature: float = 1.0) -> Tensor:
    """Return the cross-entropy of softmax(gains / temperature) and softmax(beta * log-ratios).

    InfoNCA (2402.05369, reconstructed from memory; that two candidates without gains give `dpo` with a soft label was verified).
    `offset` is subtracted from candidate 0. The temperature is the paper's alpha.
    """
    return cross_entropy(s, beta * log_ratios(s), temperature)


@weighted
def adpo_list(s: Scores, *, tau: float, temperature: float = 1.0) -> Tensor:
    """Return `infonca` with beta = 1 / tau: the cross-entropy of softmax(gains / temperature) and softmax(log-ratios / tau).

    ADPO over lists (2510.18913: KL(q || softmax((l - l_anchor) / tau)), here without the constant entropy of q; the target from gains
    and all defaults are reconstructed).
    """
    return cross_entropy(s, log_ratios(s) / tau, temperature)


@weighted
def nca(
    s: Scores,
    *,
    beta: float,
    temperature: float = 1.0,
    divergence: Divergence = "reverse_kl",
    coefficient: float = 0.5,
    centred: bool = True,
) -> Tensor:
    """Return -sum_k [q_k log sigmoid(r_k) + 1/K log sigmoid(-r_k)], r = beta * log-ratios, q = softmax(gains / temperature).

    NCA (2402.05369; the list form reconstructed from memory). Two candidates without gains have q = (p, 1-p): TRL's `nca_pair`, S(r_w) +
    S(-r_w)/2 + S(-r_l)/2 (beta 0.01 there). The temperature is the paper's alpha. `offset` is not used, because rewards are not compared
    with each other. `centred` and `divergence` as in `bco`. For lists, name the gains in `scores`.
    """
    r = beta * log_ratios(s, divergence, coefficient, centred=centred)
    return -(log_target(s, temperature).exp() * log_sigmoid(r) + log_sigmoid(-r) / r.shape[1]).sum(dim=1)


def best_first(s: Scores, x: Tensor) -> Tensor:
    """Return x (B, K) sorted by gains, the largest first, or unchanged if there are no gains."""
    if "gains" not in s.columns:
        return x
    return x.gather(1, column(s, "gains").argsort(dim=1, descending=True, stable=True))


@weighted
def plackett_luce(s: Scores, *, beta: float) -> Tensor:
    """Return sum_k [logsumexp_{j >= k} r_j - r_k] over the candidates, best first; r = beta * log-ratios.

    DPO under the Plackett-Luce model (2305.18290 appendix A.3). Candidates are sorted by `gains`, or keep their order without gains.
    Neither `prob` nor `offset` is used; for two candidates it is `dpo` at p = 1.
    """
    r = best_first(s, beta * log_ratios(s))
    return (r.flip(1).logcumsumexp(dim=1).flip(1) - r).sum(dim=1)


def ranks(r: Tensor) -> Tensor:
    """Return the rank (B, K) of every candidate, 1 for the largest r; candidates with equal r are ranked in their order."""
    return r.detach().argsort(dim=1, descending=True, stable=True).argsort(dim=1) + 1


def _lambda_loss(s: Scores, beta: float) -> Tensor:
    """Return the loss (B,) of `lipo`, whose docstring has the formula."""
    r, gains = beta * log_ratios(s), column(s, "gains")
    discount = 1.0 / ranks(r).to(r).log1p()
    value = (gains * math.log(2.0)).expm1()
    delta = (value[:, :, None] - value[:, None]).abs() * (discount[:, :, None] - discount[:, None]).abs()
    better = gains[:, :, None] > gains[:, None]
    return (delta * better * neg_log_sigmoid(r[:, :, None] - r[:, None])).sum(dim=(1, 2))


@weighted
def lipo(s: Scores, *, beta: float) -> Tensor:
    """Return the sum over pairs of unequal gain of |G_i - G_j| |1/D_i - 1/D_j| S(beta * (u_i - u_j)), i the better one, u log-ratios.

    LiPO-lambda (2402.01878, reconstructed from memory; beta 0.05 at K = 8). S = -log sigmoid, G = 2^gain - 1 with gains in [0, 1]
    (probabilities of winning), D = log(1 + rank), rank 1 for the largest log-ratio under the policy. Equal log-ratios are ranked in the
    candidates' order, so a policy that still equals its reference has a gradient. Neither `prob` nor `offset` is used.
    """
    return _lambda_loss(s, beta)


@weighted
def rank_dpo(s: Scores, *, beta: float) -> Tensor:
    """Return our reconstruction of RankDPO's loss: `lipo` of denoising errors.

    RankDPO (2410.18013): its pipeline was read, its equation and its constants are from memory. Beta multiplies half the difference of
    errors, so a beta for whole errors is half of this one. Neither `prob` nor `offset` is used.
    """
    return _lambda_loss(s, beta)


@weighted
def pro_rank(s: Scores, *, sft_weight: float = 0.05) -> Tensor:
    """Return sum_k -log [softmax of c * T over candidates k, k+1, ...]_k + sft_weight * (K-1)^2 * NLL (summed) of the best candidate.

    PRO (2306.17492 as released). Candidates are sorted by gains r, the largest first; c is the mean log-probability per token;
    T_i = r_k - r_i, and for k itself the largest of these. 1e-10 is added to the softmax, as released. There is no reference; neither
    `prob` nor `offset` is used.
    """
    import torch

    gains, c = best_first(s, column(s, "gains")), best_first(s, per_token(s, s.policy))
    count, losses = gains.shape[1], []
    for k in range(count - 1):
        gap = gains[:, k : k + 1] - gains[:, k + 1 :]
        scaled = c[:, k:] * torch.cat([gap[:, -1:], gap], dim=1)
        chosen = scaled.log_softmax(dim=1)[:, 0]
        losses.append(-torch.logaddexp(chosen, chosen.new_tensor(math.log(1e-10))))
    return torch.stack(losses).sum(dim=0) - sft_weight * (count - 1) ** 2 * best_first(s, s.policy)[:, 0]
