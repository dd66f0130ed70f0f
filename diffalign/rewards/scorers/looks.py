"""How pictures look, as scorers: numbers that anybody can check, without weights, whatever the prompt says."""

from __future__ import annotations

from collections.abc import Callable

from PIL import Image

from diffalign.core.errors import ConfigError, did_you_mean
from diffalign.rewards import drift
from diffalign.rewards.scorers.function import CallableScorer

COLOURS: dict[str, tuple[Callable[[Image.Image], float], str]] = {
    "brightness": (drift.brightness, "mean luma, 0 to 1"),
    "contrast": (drift.contrast, "standard deviation of luma"),
    "saturation": (drift.saturation, "mean chroma, 0 to 1"),
    "warmth": (drift.warmth, "mean of red minus blue"),
}
PATTERNS: dict[str, tuple[Callable[[Image.Image], float], str]] = {
    "sharpness": (drift.sharpness, "variance of the Laplacian of luma"),
    "high_frequency": (drift.high_frequency, "share of patterns finer than four pixels"),
    "pixel_grid": (drift.pixel_grid, "amplitude of a mesh of two pixels"),
}


def look(*, name: str) -> CallableScorer:
    """Return the scorer by one look of a picture, which has that look's name. Raises ConfigError if there is no such look."""
    looks = COLOURS | PATTERNS
    if name not in looks:
        raise ConfigError(f"there is no look `{name}`.{did_you_mean(name, looks)}")
    function, meaning = looks[name]
    return CallableScorer(name, f"{meaning}; prompts are not read", lambda images, _: list(map(function, images)), name, "Apache-2.0")
