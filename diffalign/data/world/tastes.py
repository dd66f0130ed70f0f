"""Tastes, which score what somebody may like in an image, in [0, 1], and simulated users, who vote by a mixture of tastes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.special import expit

from diffalign.core.errors import ConfigError, did_you_mean
from diffalign.data.world.judge import Reading, read
from diffalign.data.world.scenes import SIZES

if TYPE_CHECKING:
    from PIL import Image

Taste = Callable[[Reading], float]
FAR = 12.0  # pixels between the middle and an off-centre shape
# The attributes that a prompt must leave open if images of it are to differ in a taste.
OPEN_ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "warm": ("color",),
    "large": ("size",),
    "centred": ("position",),
    "bright_background": ("background",),
    "contrast": ("color", "background"),
    "bright_shape": ("color",),
    "high": ("position",),
}


def _luminance(rgb: np.ndarray) -> float:
    return float(rgb @ np.array([0.299, 0.587, 0.114])) / 255.0


def warm(r: Reading) -> float:
    """Return a score that is high for red and orange shapes and low for blue and green ones: red minus blue, scaled."""
    return float(0.5 + (r.fill[0] - r.fill[2]) / 510.0)


def large(r: Reading) -> float:
    """Return the half-extent of the shape: 0 for the smallest small one, 1 for the largest large one."""
    low, high = SIZES["small"][0], SIZES["large"][1]
    return (r.radius - low) / (high - low)


def centred(r: Reading) -> float:
    """Return 1 for a shape in the middle, 0 for one at an off-centre position."""
    return 1.0 - float(np.hypot(*r.center)) / FAR


def bright_background(r: Reading) -> float:
    """Return the luminance of the background."""
    return _luminance(r.ground)


def contrast(r: Reading) -> float:
    """Return the difference in luminance between shape and background, scaled."""
    return abs(_luminance(r.fill) - _luminance(r.ground)) / 0.8


def bright_shape(r: Reading) -> float:
    """Return the luminance of the shape, which is high for yellow and cyan and low for blue and purple."""
    return _luminance(r.fill)


def high(r: Reading) -> float:
    """Return a score that is high for shapes near the top of the image."""
    return 0.5 - r.center[1] / (2 * FAR)


TASTES: dict[str, Taste] = {
    "warm": warm,
    "large": large,
    "centred": centred,
    "bright_background": bright_background,
    "contrast": contrast,
    "bright_shape": bright_shape,
    "high": high,
}


def taste_score(name: str, image: Image.Image | Reading) -> float:
    """Return the score in [0, 1] of an image under taste `name`; an image without a shape scores 0.

    Raises ConfigError if there is no such taste.
    """
    if name not in TASTES:
        raise ConfigError(f"there is no taste `{name}`.{did_you_mean(name, TASTES)}")
    reading = image if isinstance(image, Reading) else read(image)
    if np.isnan(reading.radius):
        return 0.0
    return float(np.clip(TASTES[name](reading), 0.0, 1.0))


@dataclass(frozen=True, slots=True)
class User:
    """A simulated person, who votes by Bradley-Terry on the utility, the weighted sum of tastes; at `temperature` 0 without error."""

    weights: Mapping[str, float]
    temperature: float = 0.0

    def utility(self, image: Image.Image | Reading) -> float:
        """Return the weighted sum of taste scores."""
        reading = image if isinstance(image, Reading) else read(image)
        return sum(weight * taste_score(name, reading) for name, weight in self.weights.items())

    def prob(self, first: Image.Image | Reading, second: Image.Image | Reading) -> float:
        """Return the probability that this user prefers `first` to `second` (Bradley and Terry, 1952); 0.5 for equal utility."""
        gap = self.utility(first) - self.utility(second)
        if self.temperature == 0.0:
            return 0.5 * (1.0 + float(np.sign(gap)))
        return float(expit(gap / self.temperature))

    def vote(self, first: Image.Image | Reading, second: Image.Image | Reading, rng: np.random.Generator) -> float:
        """Return a random label: 1.0 for `first`, 0.0 for `second`, 0.5 for an exact tie."""
        prob = self.prob(first, second)
        return 0.5 if prob == 0.5 else float(rng.random() < prob)


def random_user(rng: np.random.Generator, temperature: float = 0.05) -> User:
    """Return a user with random weights of all tastes; they may be negative, and their absolute values sum to one."""
    draw = rng.normal(size=len(TASTES))
    return User(dict(zip(TASTES, draw / np.abs(draw).sum(), strict=True)), temperature)
