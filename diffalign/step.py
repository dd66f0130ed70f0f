"""One training step: the heart of every method, with no method's name in it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

from torch import Tensor, nn

from diffalign.build import Parts
from diffalign.types import Batch, Generator, Scores

Driving = Callable[[], AbstractContextManager[nn.Module]]


def preference_step(parts: Parts, policy: nn.Module, batch: Batch, generator: Generator, driving: Driving) -> tuple[Tensor, Scores]:
    """Return the mean loss of a batch, with gradient, and its scores. Policy and reference are scored at the same query.

    `driving` gives the network that runs the trajectory.
    """
    with driving() as network:
        query = parts.likelihood.prepare(network, batch, generator)
    reference = parts.reference.score(parts.likelihood, query)
    scores = Scores(parts.likelihood.score(policy, query), reference, batch.prob)
    return parts.objective(scores).mean(), scores
