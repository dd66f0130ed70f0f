"""Tastes: what somebody likes in a picture, as a score in [0, 1]; and simulated users, who vote by a mixture of tastes."""

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
# The attributes that a prompt must leave open for a taste to have a say.
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
    """Red and orange over blue and green: red minus blue of the shape."""
    return float(0.5 + (r.fill[0] - r.fill[2]) / 510.0)


def large(r: Reading) -> float:
    """Half-extent of the shape, from the smallest small one to the largest large one."""
    low, high = SIZES["small"][0], SIZES["large"][1]
    return (r.radius - low) / (high - low)


def centred(r: Reading) -> float:
    """One in the middle, zero where an off-centre shape sits."""
    return 1.0 - float(np.hypot(*r.center)) / FAR


def bright_background(r: Reading) -> float:
    """Luminance of the background."""
    return _luminance(r.ground)


def contrast(r: Reading) -> float:
    """Distance in luminance between shape and background."""
    return abs(_luminance(r.fill) - _luminance(r.ground)) / 0.8


def bright_shape(r: Reading) -> float:
    """Luminance of the shape: yellow and cyan over blue and purple."""
    return _luminance(r.fill)


def high(r: Reading) -> float:
    """Shapes near the top of the picture."""
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
    """Return the score in [0, 1] of a picture under taste `name`; a picture without a shape scores 0.

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
    """A simulated person: utility = sum of weight x taste; votes by Bradley-Terry at `temperature` (0 = never errs)."""

    weights: Mapping[str, float]
    temperature: float = 0.0

    def utility(self, image: Image.Image | Reading) -> float:
        """Return the weighted sum of taste scores."""
        reading = image if isinstance(image, Reading) else read(image)
        return sum(weight * taste_score(name, reading) for name, weight in self.weights.items())

    def prob(self, first: Image.Image | Reading, second: Image.Image | Reading) -> float:
        """Return the chance in [0, 1] that this user prefers `first` (Bradley and Terry, 1952); 0.5 for equal utility."""
        gap = self.utility(first) - self.utility(second)
        if self.temperature == 0.0:
            return 0.5 * (1.0 + float(np.sign(gap)))
        return float(expit(gap / self.temperature))

    def vote(self, first: Image.Image | Reading, second: Image.Image | Reading, rng: np.random.Generator) -> float:
        """Return a drawn label: 1.0 for `first`, 0.0 for `second`, 0.5 for an exact tie."""
        chance = self.prob(first, second)
        return 0.5 if chance == 0.5 else float(rng.random() < chance)


def random_user(rng: np.random.Generator, temperature: float = 0.05) -> User:
    """Return a user with a random direction over all tastes; weights sum to one in absolute value and may be negative."""
    draw = rng.normal(size=len(TASTES))
    return User(dict(zip(TASTES, draw / np.abs(draw).sum(), strict=True)), temperature)
