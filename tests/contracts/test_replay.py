"""Every family of models replays its stored sampler steps with a ratio of one, guidance on and off."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from diffalign.core.errors import TrainingError
from diffalign.models.diffusion.likelihood import outputs
from diffalign.models.diffusion.rollout import Sampler, StepLikelihood, check_replay, rollout
from tests.micro_models import SIDE


def test_stored_steps_are_replayed_with_a_ratio_of_one(backbone):
    shape = (1, 2, *backbone.latent_shape(SIDE, SIDE))
    condition, empty = backbone.encode_prompt(["a red star"]), backbone.encode_prompt([""])
    path, model = backbone.path, backbone.denoiser
    times = path.solver_times(3).flip(0)

    def predict(x, label, /, *, empty=False, nothing=empty):
        return outputs(backbone.predict, model, x, label, nothing if empty else condition, None)

    def draw(place):
        return torch.randn(shape, generator=torch.Generator().manual_seed(place))

    for guidance in (0.0, 3.0):
        likelihood = StepLikelihood(path, backbone.predict, Sampler("cps", 0.8, guidance), times[1])
        _, (stored,) = rollout(draw(9), predict, path, times, likelihood.sampler, draw, trained=(1,))
        stored = replace(stored, condition=condition, empty=empty)
        with torch.no_grad():
            check_replay(likelihood, likelihood.scores(likelihood.score(model, stored), None, stored), stored, tolerance=1e-6)
            broken = replace(likelihood, sampler=replace(likelihood.sampler, level=0.5))
            with pytest.raises(TrainingError, match="its level was"):
                check_replay(broken, broken.scores(broken.score(model, stored), None, stored), stored, tolerance=1e-6)
