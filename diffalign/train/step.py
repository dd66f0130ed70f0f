"""One training step: the heart of every method, with no method's name in it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from diffalign.core.types import Batch, Generator, Likelihood, Query, Scores
from diffalign.methods.parts import Parts
from diffalign.models.diffusion.likelihood import joined

Driving = Callable[[], AbstractContextManager[nn.Module]]


def preference_step(
    parts: Parts, policy: nn.Module, batch: Batch, generator: Generator, driving: Driving, *, sequential: bool = False
) -> tuple[Tensor, Scores]:
    """Return the mean loss of a batch, with gradient, and its scores. Policy and reference are scored at the same query.

    `driving` gives the network that runs the trajectory; `sequential` runs the policy on one candidate at a time.
    """
    with driving() as network:
        query = parts.likelihood.prepare(network, batch, generator)
    reference = parts.reference.score(parts.likelihood, query)
    scored = one_by_one(parts.likelihood, policy, query) if sequential else parts.likelihood.score(policy, query)
    scores = parts.likelihood.scores(scored, reference, batch)
    return parts.recipe.objective(scores).mean(), scores


def one_by_one(likelihood: Likelihood, policy: Any, query: Query) -> Any:
    """Return what the likelihood's `score` does, with gradient, holding the activations of one candidate at a time.

    Nothing is kept of the forward passes. The loss is computed from all scores; the backward pass then runs each candidate again, the
    last one first, with the same dropout. The gradient is that of all candidates at once.
    """

    def score(x_t: Tensor, part: Query) -> Any:  # an argument that is a tensor tells `checkpoint` whose random state to keep
        return likelihood.score(policy, replace(part, noised=replace(part.noised, x_t=x_t)))

    parts = [candidate(query, k) for k in range(query.noised.x_t.shape[1])]
    return joined([checkpoint(score, part.noised.x_t, part, use_reentrant=False) for part in parts])


def candidate(query: Query, k: int) -> Query:
    """Return the query of candidate `k` alone."""
    noised, place = query.noised, slice(k, k + 1)
    frames, conditioning = (None if x is None else x[:, place] for x in (query.frames, query.conditioning))
    alone = replace(noised, x_t=noised.x_t[:, place], target=noised.target[:, place])
    return replace(query, noised=alone, frames=frames, conditioning=conditioning)
