"""Objectives that add a term to DPO: of the preferred candidate, of a further answer, or of a further pair; and what adds one to any.

Further answers are candidates 2, 3, ... of the record. The DPO part uses `prob` and `offset`; a term of the preferred candidate alone is
mixed over both orders by `prob`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from diffalign.objectives.base import (
    Loss,
    both_orders,
    log_ratios,
    margin,
    neg_log_sigmoid,
    nll,
    pairwise,
    prob_of,
    require_candidates,
    weighted,
)

if TYPE_CHECKING:
    from torch import Tensor

    from diffalign.core.types import Scores


def _dpo(s: Scores, beta: float) -> Tensor:
    return pairwise(s, beta * margin(log_ratios(s)))


@weighted
def rpo(s: Scores, *, beta: float, eta: float = 0.005, scaling: Literal["sum", "mean"] = "sum") -> Tensor:
    """Return `dpo` - eta * beta * log-likelihood of the preferred ("sum"), or + eta * its NLL per token ("mean").

    RPO (2405.16436; "sum" as released, with beta 0.01; "mean" is TRL's combination of `sigmoid` and `sft`, on another scale). For images
    the log-likelihood is minus half the denoising error, in both.
    """
    term = both_orders(s, lambda first, _: -beta * s.policy[:, first] if scaling == "sum" else nll(s, first))
    return _dpo(s, beta) + eta * term


def _third_log_ratio(s: Scores) -> Tensor:
    """Return the log-ratio (B,) of candidate 2. Raises ValueError for records of two candidates."""
    require_candidates(s, 3, "a further answer as candidate 2")
    return log_ratios(s)[:, 2]


@weighted
def selm(s: Scores, *, beta: float, alpha: float = 1e-3) -> Tensor:
    """Return `dpo` + alpha * beta * log-ratio of candidate 2, an answer of the reference: encourages other answers than the reference's.

    SELM (2405.19332 as released: beta 0.01, alpha 1e-3 or 1e-4; the reference is the previous iterate, which wrote candidate 2).
    """
    return _dpo(s, beta) + alpha * beta * _third_log_ratio(s)


@weighted
def xpo(s: Scores, *, beta: float, alpha: float = 1e-5) -> Tensor:
    """Return `dpo` + alpha * log-likelihood of candidate 2, which is the reference's answer, a copy of candidate 0 or 1.

    XPO (2405.21046 as in TRL: alpha 1e-5). Unlike in `selm`, the term has no beta, and no reference, because that part is constant.
    """
    require_candidates(s, 3, "the reference's answer as candidate 2")
    return _dpo(s, beta) + alpha * s.policy[:, 2]


@weighted
def vpo(s: Scores, *, beta: float, alpha: float = 0.01, optimistic: bool = False) -> Tensor:
    """Return `dpo` - alpha * beta * log-ratio of candidate 2, an answer of the calibration policy; if `optimistic`, plus instead of minus.

    VPO (2405.19320; reconstructed from its stated aim, a reward likelihood with a bias of the value function; its alpha is unknown). With
    minus and the preferred answer as candidate 2 it is `rpo`; optimistic, with the previous iterate's answer, it is `selm`.
    """
    return _dpo(s, beta) + (alpha if optimistic else -alpha) * beta * _third_log_ratio(s)


@weighted
def bvpo(s: Scores, *, beta: float, alpha: float = 0.5) -> Tensor:
    """Return alpha * `dpo` of candidates 0 and 1, with reasoning traces, + (1 - alpha) * `dpo` of candidates 2 and 3, without traces.

    BVPO (2510.05095, from its description; the paper has a closed form for alpha, and 1/2 is our default). Both pairs share the label and
    the offset.
    """
    first, second = _two_pairs(s, beta, "the pair without traces as candidates 2 and 3")
    return alpha * first + (1.0 - alpha) * second


@weighted
def bide_dpo(s: Scores, *, beta: float, balanced: bool = True) -> Tensor:
    """Return w * `dpo` of candidates 0 and 1, a pair of which one follows the text, + (1 - w) * `dpo` of 2 and 3, one the condition.

    BideDPO (2511.19268, from a description with its formulas): w is the first loss over the sum of both, without gradient, so that the
    pairs that are learned less weigh more. Our reading: the losses in w are means over the batch. Not `balanced`, w is 1/2.
    """
    text, condition = _two_pairs(s, beta, "the pair of the condition as candidates 2 and 3")
    share = _share(text.detach().mean(), condition.detach().mean()) if balanced else 0.5
    return share * text + (1.0 - share) * condition


def _share(loss: Tensor, other: Tensor) -> Tensor:
    """Return loss / (loss + other), and 1/2 where both are zero, as losses of very large margins are."""
    return (loss / (loss + other)).where(loss + other > 0.0, 0.5)


def _two_pairs(s: Scores, beta: float, second: str) -> tuple[Tensor, Tensor]:
    """Return `dpo` (B,) of candidates 0 and 1, and of candidates 2 and 3, which are `second`; both share the label and the offset."""
    require_candidates(s, 4, second)
    u = log_ratios(s)
    return pairwise(s, beta * margin(u)), pairwise(s, beta * margin(u[:, 2:]))


@weighted
def mapl(s: Scores, *, beta: float, inter: float = 1.0) -> Tensor:
    """Return `dpo` of candidates 0 and 1 + inter * `dpo` of the margin of candidates 2 and 3 minus the margin of 0 and 1.

    MAPL (2505.12845; partly from its description, the second term and its weight are reconstructed). Candidates 2 and 3 answer several
    instructions at once. The paper's other loss compares prompts for one answer: that is `dpo` on candidates with different prompts. The
    second term has no `offset`, which is a margin of candidate 0 over 1.
    """
    require_candidates(s, 4, "the pair of several instructions as candidates 2 and 3")
    u = log_ratios(s)
    difference = beta * (margin(u[:, 2:]) - margin(u))
    return pairwise(s, beta * margin(u)) + inter * both_orders(s, lambda first, _: neg_log_sigmoid(-difference if first else difference))


@weighted
def srpo(s: Scores, *, beta: float, alpha: float = 0.5) -> Tensor:
    """Return squared distances of log-ratios from their optimum under self-improvement, mixed by alpha; there is no sigmoid.

    SRPO (2406.01660; derived from its stated aim, and alpha from memory). Candidates are w, l, then w written after l, l after w, w after
    w, l after l. With u the log-ratios and c = p - 1/2 the loss is
    (1-alpha) (c - beta/2 [u(w|l) - u(l|w) + u_w - u_l])^2 + alpha/2 [(c - beta (u(w|l) - u(l|l)))^2 + (c + beta (u(l|w) - u(w|w)))^2].
    `offset` is not used, because c is the target.
    """
    require_candidates(s, 6, "the answers written after each other as candidates 2 to 5")
    u, c = beta * log_ratios(s), prob_of(s) - 0.5
    preference = c - 0.5 * (u[:, 2] - u[:, 3] + margin(u))
    after_dispreferred, after_preferred = c - (u[:, 2] - u[:, 5]), c + (u[:, 3] - u[:, 4])
    return (1.0 - alpha) * preference**2 + 0.5 * alpha * (after_dispreferred**2 + after_preferred**2)


def with_rationale(loss: Loss, *, weight: float) -> Loss:
    """Return `loss` + weight * negative log-likelihood of the rationale, the sum over its tokens.

    Rationale-enriched preferences (2407.14477, from its description: a supervised term beside the loss of pairs). As released the term is
    -log sigmoid(weight * log pi), whose gradient is sigmoid(-weight * log pi), between half and the whole, times this one's. Raises
    ValueError for scores without rationales.
    """

    @weighted
    def unlikelihood(s: Scores) -> Tensor:
        if s.rationale is None:
            raise ValueError("this objective reads the log-probability of rationales, and these scores have none: it is for texts")
        return -weight * s.rationale

    def explained(s: Scores, **constants: Any) -> Tensor:
        return loss(s, **constants) + unlikelihood(s)

    return explained
