"""The embedded world's judges: exact, by measurement, without weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

from diffalign.core.errors import ConfigError, did_you_mean
from diffalign.data.world import judge
from diffalign.data.world.tastes import TASTES, taste_score
from diffalign.rewards.base import check_arguments


class WorldScorer:
    """A scorer by a function of one image and its prompt."""

    licence = "Apache-2.0"
    max_tokens: int | None = None
    revision: str | None = None
    unit = "share"

    def __init__(self, name: str, scale: str, function: Callable[[Image.Image, str], float]) -> None:
        self.name, self.scale, self.function = name, scale, function

    def __call__(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> np.ndarray:
        """Return scores (N,)."""
        check_arguments(images, prompts)
        return np.array([self.function(image, prompt) for image, prompt in zip(images, prompts, strict=True)], dtype=np.float64)


def adherence() -> WorldScorer:
    """Return the scorer of the share of the attributes named in the prompt that the picture shows; NaN if it names none."""
    scale = "share in [0, 1] of the attributes named in the prompt that the picture shows"
    return WorldScorer("adherence", scale, lambda image, prompt: judge.adherence(prompt, judge.read(image)))


def taste(*, name: str) -> WorldScorer:
    """Return the scorer by one of the world's tastes, which has that taste's name. Raises ConfigError if there is no such taste."""
    if name not in TASTES:
        raise ConfigError(f"there is no taste `{name}`.{did_you_mean(name, TASTES)}")
    scale = f"taste `{name}` in [0, 1]; 0 for a picture without a shape; prompts are not read"
    return WorldScorer(name, scale, lambda image, _: taste_score(name, image))
