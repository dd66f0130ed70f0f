"""Scores of images under the prompt of the batch's next record, too: the zero point of Diffusion-KTO as in its paper (2404.04465)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from diffalign.core.types import Batch, Compared, Generator, Query, Scores
from diffalign.models.diffusion.likelihood import DiffusionLikelihood


@dataclass(frozen=True, slots=True)
class WithNeighbour:
    """What a network says of a query."""

    own: Any  # under the records' own prompts
    neighbour: Any  # under those of the next records, without gradient


@dataclass(frozen=True, slots=True)
class NeighbourLikelihood:
    """A likelihood that asks every network once more, without gradient, with the prompts of a batch moved on by one."""

    likelihood: DiffusionLikelihood

    def prepare(self, driver: Any, batch: Batch, generator: Generator) -> Query:
        """Return the query of a batch."""
        return self.likelihood.prepare(driver, batch, generator)

    def score(self, model: Any, query: Query) -> WithNeighbour:
        """Return what a network says under both prompts."""
        moved = {name: value.roll(-1, dims=0) for name, value in query.condition.items()}
        with torch.no_grad():
            neighbour = replace(self.likelihood, residuals=False).score(model, replace(query, condition=moved))
        return WithNeighbour(self.likelihood.score(model, query), neighbour)

    def scores(self, policy: WithNeighbour, reference: Any, batch: Batch) -> Scores:
        """Return what the objective sees, with the log-ratios under the neighbours' prompts."""
        others = reference if isinstance(reference, Compared) else Compared(reference)
        own = Compared(*(None if other is None else other.own for other in (others.reference, others.start, others.old)))
        return replace(self.likelihood.scores(policy.own, own, batch), neighbour=policy.neighbour - others.reference.neighbour)
