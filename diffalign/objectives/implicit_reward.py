"""The implicit reward of every candidate, by objective: what reports call `rewards/chosen` and `rewards/rejected`, as TRL does."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from diffalign.objectives import OBJECTIVES, facts
from diffalign.objectives.base import column, own, per_token, reference_of
from diffalign.objectives.reference_free import shaped
from diffalign.objectives.token import divergence_of

if TYPE_CHECKING:
    from torch import Tensor

    from diffalign.core.types import Scores

Reward = Callable[["Scores", Mapping[str, Any]], "Tensor"]


def _mean(s: Scores, c: Mapping[str, Any]) -> Tensor:
    return c.get("beta", 1.0) * shaped(per_token(s, s.policy), c.get("alpha", 0.0))


def _cpo(s: Scores, c: Mapping[str, Any]) -> Tensor:
    means = c["loss_type"] in ("ipo", "tpo-l")
    return c["beta"] * shaped(per_token(s, s.policy) if means else own(s), c["alpha"])


REWARDS: dict[str, Reward] = {
    "adpo": lambda s, c: s.log_ratio / c["tau"],
    "adpo_list": lambda s, c: s.log_ratio / c["tau"],
    "ipo": lambda s, c: c["tau"] * s.log_ratio,
    "inpo_nash": lambda s, c: c["tau"] * s.log_ratio,
    "flex_dpo": lambda s, c: c["beta_plus"] * s.log_ratio,
    "dpo_gamma": lambda s, c: c["beta"] * (own(s) - c["gamma"] * reference_of(s)),
    "modpo": lambda s, c: (c["beta"] * s.log_ratio - column(s, "margin")) / c["own_weight"],
    "tdpo": lambda s, c: c["beta"] * (s.log_ratio + divergence_of(s)),
    "simpo": _mean,
    "orpo": _mean,
    "asft": _mean,
    "pro_rank": _mean,
    "cpo": _cpo,
    "triple_po": lambda s, c: _cpo(s, {**c, "alpha": 0.0}),  # its alpha weighs the NLL
    "poft": lambda s, c: c["beta"] * (per_token(s, s.policy) - column(s, "teacher")),
}


def implicit_reward(name: str, s: Scores, constants: Mapping[str, Any]) -> Tensor:
    """Return the rewards (B, K) that the objective `name` trains, without gradient; `constants` not given have their defaults.

    beta * log-ratio where nothing else is known: never length-normalised and without a divergence, as in TRL. Without a reference the
    policy's score takes the log-ratio's place, per token where the objective compares means.
    """
    parameters = inspect.signature(OBJECTIVES[name]).parameters.values()
    known = {p.name: p.default for p in parameters if p.default is not p.empty} | dict(constants)
    if name in REWARDS:
        return REWARDS[name](s, known).detach()
    if not facts(name).reference:
        return s.policy.detach()  # of MaPO and the like beta is no scale of the score
    return (known.get("beta", 1.0) * s.log_ratio).detach()
