"""One step of a recipe on one number: what does not fit together is found before anything is loaded."""

from __future__ import annotations

import torch

from diffalign.core.errors import ConfigError
from diffalign.core.types import Residuals, Scores
from diffalign.methods.config import TrainConfig
from diffalign.methods.recipe import Recipe
from diffalign.models.diffusion.path import VPPath


def check_step(config: TrainConfig, recipe: Recipe) -> None:
    """Raise ConfigError for parts that cannot be meant together."""
    if recipe.driver == "reference" and not recipe.compares:
        raise ConfigError(f"the trajectory's driver is reference, and `{config.method}` has none; use driver policy or ema")
    if config.trajectory_cache:
        _check_kept(config, recipe)
    path, rollout = VPPath.from_config({}), recipe.trajectory.name == "self_rollout"
    images = 0 if rollout and recipe.trajectory.constants["start"] == "noise" else 2
    answer = lambda x, _, /, *, empty=False, rows=None: x  # noqa: E731, ARG005  # a network that answers with its input
    noised = recipe.trajectory(torch.zeros(1, images, 1, 1, 1), answer, path, torch.Generator())
    scores, facts = recipe.error(path, noised, noised.x_t), recipe.facts
    if scores.shape[1] == 1 and facts.candidates > 1:
        raise ConfigError("self_rollout gives one picture a record, and the objective compares two; set objective to denoise")
    if not facts.tokens:
        scores = scores[:, :1].expand(1, max(scores.shape[1], facts.candidates))
        columns = dict.fromkeys(facts.columns, torch.zeros_like(scores))
        reference, outputs = (scores, scores[:, :, None, None, None]) if recipe.compares else (None, None)
        residuals = Residuals(scores[:, :, None, None, None], scores[:, 0], outputs) if recipe.residuals else None
        more = {"lengths": torch.ones_like(scores), "neighbour": scores, "rationale": scores[:, 0]}
        recipe.objective(Scores(scores, reference, columns=columns, residuals=residuals, **more))


def _check_kept(config: TrainConfig, recipe: Recipe) -> None:
    """Raise ConfigError for points that cannot be kept, or would be stale as soon as training has begun."""
    if recipe.trajectory.name != "ddim_inversion" or recipe.driver != "reference":
        raise ConfigError(
            f"`trajectory_cache` keeps inversions driven by the reference; this trajectory is {recipe.trajectory.name}, driven by the "
            f"{recipe.driver}; give {{ddim_inversion: {{driver: reference, ...}}}}"
        )
    if config.cache == "off" or config.cache_variants > config.trajectory_cache:
        raise ConfigError("`trajectory_cache` needs `cache` disk, and at least as many points as there are `cache_variants`")
