"""Prompts for two parts, and scorers of a colour that cannot judge all of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from diffalign.rewards import names
from diffalign.rewards.table import SCORERS

PROMPTS = [f"a {color} {shape}" for shape in ("star", "heart", "circle") for color in ("red", "green", "blue", "white")][:9]  # two parts


class Shade:
    """Scores the mean of one colour, and cannot judge white things by the first."""

    unit, scale, licence, max_tokens, revision = "byte", "mean in [0, 255]", "Apache-2.0", None, None

    def __init__(self, name: str, channel: int) -> None:
        self.name, self.channel = name, channel

    def __call__(self, images, prompts):
        values = [np.asarray(image, dtype=np.float64)[..., self.channel].mean() for image in images]
        return np.where(["white" in prompt and self.channel == 0 for prompt in prompts], np.nan, values)


def add_scorer(patch: pytest.MonkeyPatch, name: str, make: Callable[..., Any]) -> None:
    """Let a scorer be known by its name, as those of the table are."""
    patch.setitem(SCORERS, name, make)
    patch.setattr(names, "SCORER_NAMES", (*names.SCORER_NAMES, name))
