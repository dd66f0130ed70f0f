"""The implicit reward of every candidate (B, K), by objective: what reports call `rewards/chosen` and `rewards/rejected`, as TRL does.

A reward is never length-normalised and has no divergence, as in TRL. Without a reference the policy's score takes the log-ratio's place,
per token where the loss compares means. `c` are all constants of the loss.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from diffalign.objectives.base import column, own, per_token, reference_of
from diffalign.objectives.reference_free import shaped
from diffalign.objectives.token import divergence_of

if TYPE_CHECKING:
    from torch import Tensor

    from diffalign.core.types import Scores


def log_ratio(s: Scores, c: Mapping[str, Any]) -> Tensor:
    """Return beta * log-ratio: the reward of DPO (2305.18290 eq. 5)."""
    return c["beta"] * s.log_ratio


def over_tau(s: Scores, c: Mapping[str, Any]) -> Tensor:
    """Return log-ratio / tau."""
    return s.log_ratio / c["tau"]


def times_tau(s: Scores, c: Mapping[str, Any]) -> Tensor:
    """Return tau * log-ratio."""
    return c["tau"] * s.log_ratio


def times_beta_plus(s: Scores, c: Mapping[str, Any]) -> Tensor:
    """Return beta_plus * log-ratio."""
    return c["beta_plus"] * s.log_ratio


def policy_score(s: Scores, c: Mapping[str, Any]) -> Tensor:  # noqa: ARG001  # every reward is called alike
    """Return the policy's score itself, where beta is no scale of it (MaPO)."""
    return s.policy


def policy_mean(s: Scores, c: Mapping[str, Any]) -> Tensor:
    """Return beta * the mean log-probability, shaped by `alpha` where the loss has one (SimPO)."""
    return c.get("beta", 1.0) * shaped(per_token(s, s.policy), c.get("alpha", 0.0))


def cpo(s: Scores, c: Mapping[str, Any]) -> Tensor:
    """Return beta * the policy's score, shaped by `alpha`: per token where CPO's loss compares means."""
    means = c["loss_type"] in ("ipo", "tpo-l")
    return c["beta"] * shaped(per_token(s, s.policy) if means else own(s), c["alpha"])


def triple_po(s: Scores, c: Mapping[str, Any]) -> Tensor:
    """Return CPO's reward unshaped: the `alpha` of triple_po weighs the NLL."""
    return cpo(s, {**c, "alpha": 0.0})


def dpo_gamma(s: Scores, c: Mapping[str, Any]) -> Tensor:
    """Return beta * (policy - gamma * reference)."""
    return c["beta"] * (own(s) - c["gamma"] * reference_of(s))


def modpo(s: Scores, c: Mapping[str, Any]) -> Tensor:
    """Return (beta * log-ratio - the other objectives' margin) / own weight (2310.03708)."""
    return (c["beta"] * s.log_ratio - column(s, "margin")) / c["own_weight"]


def tdpo(s: Scores, c: Mapping[str, Any]) -> Tensor:
    """Return beta * (log-ratio + sequence KL) (2404.11999)."""
    return c["beta"] * (s.log_ratio + divergence_of(s))


def poft(s: Scores, c: Mapping[str, Any]) -> Tensor:
    """Return beta * (mean log-probability - the teacher's)."""
    return c["beta"] * (per_token(s, s.policy) - column(s, "teacher"))
