"""One training step: the heart of every method, with no method's name in it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from diffalign.core.types import Batch, Generator, Likelihood, Scores
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
    losses = parts.recipe.objective(scores) if scores.losses is None else scores.losses
    return losses.mean(), scores


def one_by_one(likelihood: Likelihood, policy: Any, query: Any) -> Any:
    """Return what the likelihood's `score` does, with gradient, holding the activations of one candidate at a time.

    Nothing is kept of the forward passes. The loss is computed from all scores; the backward pass then runs each candidate again, the
    last one first, with the same dropout. The gradient is that of all candidates at once.
    """

    def score(_: Tensor, part: Any) -> Any:  # an argument that is a tensor tells `checkpoint` whose random state to keep
        return likelihood.score(policy, part)

    parts = [query.candidate(k) for k in range(query.x.shape[1])]
    return joined([checkpoint(score, part.x, part, use_reentrant=False) for part in parts])
