"""Scores under the prompts of a batch's other records."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from diffalign.core.types import Batch, Noised, Query
from diffalign.models.diffusion.likelihood import DiffusionLikelihood
from diffalign.models.diffusion.neighbours import NeighbourLikelihood
from diffalign.models.diffusion.path import FlowPath
from diffalign.models.diffusion.trajectory import forward
from diffalign.models.reference import Frozen, Several
from diffalign.objectives import OBJECTIVES
from diffalign.train.step import one_by_one
from tests.train.online.test_policies import Scale


def test_each_record_is_scored_under_the_prompt_of_the_next_one():
    ones, prompts = torch.ones(2, 2, 1, 1, 1, dtype=torch.float64), torch.tensor([1.0, 3.0], dtype=torch.float64)
    query = Query(Noised(ones, torch.ones(2), 0.0 * ones, torch.ones(2, dtype=torch.float64)), {"prompt": prompts})
    plain = DiffusionLikelihood(FlowPath(), lambda model, x, t, named: model.size * named["prompt"].view(-1, 1, 1, 1) * x, forward)
    likelihood, policy = NeighbourLikelihood(plain), Scale(2.0)
    for reference in (Frozen(Scale(3.0)), Several(Frozen(Scale(3.0)))):
        others = reference.score(likelihood, query)
        for score in (likelihood.score(policy, query), one_by_one(likelihood, policy, query)):
            s = likelihood.scores(score, others, Batch(ones, {}, {}, torch.ones(2)))
            # -1/2 (2 p)^2 + 1/2 (3 p)^2 = 2.5 p^2
            assert s.log_ratio.tolist() == [[2.5, 2.5], [22.5, 22.5]]
            assert s.neighbour.tolist() == [[22.5, 22.5], [2.5, 2.5]]
            assert not s.neighbour.requires_grad
    # z0 = 12.5; sigmoid(0.1 (2.5 - 12.5)) = 0.26894 for the liked image of the first record, 0.73106 for the other one, and so on.
    losses = OBJECTIVES["diffusion_kto"](s, beta=0.1, zero_point="neighbour")
    assert losses.tolist() == pytest.approx([0.5 * (0.731059 + 0.268941)] * 2, abs=1e-5)
    with pytest.raises(ValueError, match="prompts of other records"):
        OBJECTIVES["diffusion_kto"](replace(s, neighbour=None), beta=0.1, zero_point="neighbour")
