"""The implicit rewards (B, K) of objectives, which are reported as `rewards/chosen` and `rewards/rejected`, as in TRL.

A reward is never length-normalised and has no divergence, as in TRL. Objectives without a reference use the policy's score instead of
the log-ratio, per token where the loss compares means. The argument `c` holds all constants of the loss.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from diffalign.objectives.base import column, per_token, policy_scores, reference_scores
from diffalign.objectives.reference_free import shaped
from diffalign.objectives.token import sequence_kl

if TYPE_CHECKING:
    from torch import Tensor

    from diffalign.core.types import Scores


def times_beta(s: Scores, c: Mapping[str, Any]) -> Tensor:
    """Return beta * log-ratio: the reward of DPO (2305.18290 eq. 5)."""
    return c["beta"] * s.log_ratio


def log_ratio(s: Scores, c: Mapping[str, Any]) -> Tensor:  # noqa: ARG001  # all rewards have one signature
    """Return the log-ratio, for objectives without a beta that scales it."""
    return s.log_ratio


def over_tau(s: Scores, c: Mapping[str, Any]) -> Tensor:
    """Return log-ratio / tau."""
    return s.log_ratio / c["tau"]


def times_tau(s: Scores, c: Mapping[str, Any]) -> Tensor:
    """Return tau * log-ratio."""
    return c["tau"] * s.log_ratio


def times_beta_plus(s: Scores, c: Mapping[str, Any]) -> Tensor:
    """Return beta_plus * log-ratio."""
    return c["beta_plus"] * s.log_ratio


def policy_score(s: Scores, c: Mapping[str, Any]) -> Tensor:  # noqa: ARG001  # all rewards have one signature
    """Return the policy's score, for objectives in which beta does not scale it (MaPO)."""
    return s.policy


def policy_mean(s: Scores, c: Mapping[str, Any]) -> Tensor:
    """Return beta * the mean log-probability, reshaped by `alpha` if the loss has this constant (SimPO)."""
    return c.get("beta", 1.0) * shaped(per_token(s, s.policy), c.get("alpha", 0.0))


def cpo(s: Scores, c: Mapping[str, Any]) -> Tensor:
    """Return beta * the policy's score, reshaped by `alpha`; per token for the loss types that compare means."""
    means = c["loss_type"] in ("ipo", "tpo-l")
    return c["beta"] * shaped(per_token(s, s.policy) if means else policy_scores(s), c["alpha"])


def triple_po(s: Scores, c: Mapping[str, Any]) -> Tensor:
    """Return CPO's reward without reshaping: the constant `alpha` of triple_po is the weight of the NLL."""
    return cpo(s, {**c, "alpha": 0.0})


def dpo_gamma(s: Scores, c: Mapping[str, Any]) -> Tensor:
    """Return beta * (policy - gamma * reference)."""
    return c["beta"] * (policy_scores(s) - c["gamma"] * reference_scores(s))


def modpo(s: Scores, c: Mapping[str, Any]) -> Tensor:
    """Return (beta * log-ratio - `margin`) / own_weight, where `margin` is the column of the other objectives (2310.03708)."""
    return (c["beta"] * s.log_ratio - column(s, "margin")) / c["own_weight"]


def tdpo(s: Scores, c: Mapping[str, Any]) -> Tensor:
    """Return beta * (log-ratio + sequence KL) (2404.11999)."""
    return c["beta"] * (s.log_ratio + sequence_kl(s))


def poft(s: Scores, c: Mapping[str, Any]) -> Tensor:
    """Return beta * (mean log-probability - the mean log-probability of the teachers)."""
    return c["beta"] * (per_token(s, s.policy) - column(s, "teacher"))
