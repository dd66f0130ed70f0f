"""Objectives that are DPO and a further term: of the preferred candidate, of a further answer, or of a further pair.

Further answers are candidates 2, 3, ... of the record. The DPO part honours `prob` and `offset`; a term of the preferred candidate alone
is shared out by `prob`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from diffalign.objectives.base import both_orders, compared, margin, need, nll, pairwise, prob_of, surprise, weighted

if TYPE_CHECKING:
    from torch import Tensor

    from diffalign.core.types import Scores


def _dpo(s: Scores, beta: float) -> Tensor:
    return pairwise(s, beta * margin(compared(s)))


@weighted
def rpo(s: Scores, *, beta: float, eta: float = 0.005, scaling: Literal["sum", "mean"] = "sum") -> Tensor:
    """Return `dpo` - eta * beta * log-likelihood of the preferred ("sum"), or + eta * its NLL per token ("mean").

    RPO (2405.16436; "sum" as released, with beta 0.01; "mean" is TRL's recipe of `sigmoid` and `sft`, another scale). For images the
    likelihood is half the denoising error, below zero, in both.
    """
    term = both_orders(s, lambda first, _: -beta * s.policy[:, first] if scaling == "sum" else nll(s, first))
    return _dpo(s, beta) + eta * term


def _third(s: Scores) -> Tensor:
    """Return the log-ratio (B,) of the further answer. Raises ValueError where there is none."""
    need(s, 3, "a further answer as candidate 2")
    return compared(s)[:, 2]


@weighted
def selm(s: Scores, *, beta: float, alpha: float = 1e-3) -> Tensor:
    """Return `dpo` + alpha * beta * log-ratio of an answer of the reference, candidate 2: optimism about what it does not say.

    SELM (2405.19332 as released: beta 0.01, alpha 1e-3 or 1e-4; the reference is the previous iterate, which wrote the answer).
    """
    return _dpo(s, beta) + alpha * beta * _third(s)


@weighted
def xpo(s: Scores, *, beta: float, alpha: float = 1e-5) -> Tensor:
    """Return `dpo` + alpha * log-likelihood of candidate 2, the answer of the reference, which is one of the judged pair again.

    XPO (2405.21046 as in TRL: alpha 1e-5). Beside `selm` the term has neither beta nor reference, whose part is constant.
    """
    need(s, 3, "the reference's answer as candidate 2")
    return _dpo(s, beta) + alpha * s.policy[:, 2]


@weighted
def vpo(s: Scores, *, beta: float, alpha: float = 0.01, optimistic: bool = False) -> Tensor:
    """Return `dpo` -+ alpha * beta * log-ratio of candidate 2, an answer of the calibration policy: minus offline, plus when `optimistic`.

    VPO (2405.19320; derived from its stated aim, reward likelihood and a bias of the value function; alpha unknown). With the preferred as
    candidate 2 and offline it is `rpo`; optimistic, with the previous iterate's answer, `selm`.
    """
    return _dpo(s, beta) + (alpha if optimistic else -alpha) * beta * _third(s)


@weighted
def bvpo(s: Scores, *, beta: float, alpha: float = 0.5) -> Tensor:
    """Return alpha * `dpo` of candidates 0 and 1, with traces of thought, + (1 - alpha) * `dpo` of 2 and 3, without.

    BVPO (2510.05095, from its description; alpha 1/2 is a start, the paper has a closed form). One label and one offset serve both pairs.
    """
    need(s, 4, "the pair without traces as candidates 2 and 3")
    u = compared(s)
    return alpha * pairwise(s, beta * margin(u)) + (1.0 - alpha) * pairwise(s, beta * margin(u[:, 2:]))


@weighted
def mapl(s: Scores, *, beta: float, inter: float = 1.0) -> Tensor:
    """Return `dpo` of candidates 0 and 1 + inter * `dpo` of how far the margin of 2 and 3, of several instructions, lies above theirs.

    MAPL (2505.12845; in part from its description, the term between samples and its weight are reconstructed). The loss within a
    sample compares prompts for one answer: it is `dpo` on candidates with prompts of their own. `offset` is a lead of candidate 0 over 1,
    so the term between samples has none.
    """
    need(s, 4, "the pair of several instructions as candidates 2 and 3")
    u = compared(s)
    further = beta * (margin(u[:, 2:]) - margin(u))
    return pairwise(s, beta * margin(u)) + inter * both_orders(s, lambda first, _: surprise(-further if first else further))


@weighted
def srpo(s: Scores, *, beta: float, alpha: float = 0.5) -> Tensor:
    """Return the squared distances of self-improvement from its optimum, mixed by alpha; no margin is inside a sigmoid.

    SRPO (2406.01660; derived from its stated aim, and alpha from memory). Candidates: w, l, then w written after l, l after w, w after w,
    l after l; u are log-ratios and c = p - 1/2:
    (1-alpha) (c - beta/2 [u(w|l) - u(l|w) + u_w - u_l])^2 + alpha/2 [(c - beta (u(w|l) - u(l|l)))^2 + (c + beta (u(l|w) - u(w|w)))^2].
    `offset` is not used: the aim is c.
    """
    need(s, 6, "the answers written after each other as candidates 2 to 5")
    u, c = beta * compared(s), prob_of(s) - 0.5
    better = c - 0.5 * (u[:, 2] - u[:, 3] + margin(u))
    after_loser, after_winner = c - (u[:, 2] - u[:, 5]), c + (u[:, 3] - u[:, 4])
    return (1.0 - alpha) * better**2 + 0.5 * alpha * (after_loser**2 + after_winner**2)
