"""Selection among pictures of nearby sliders: RPS (Robust Preference Selection, 2510.20498), carried over to pictures by us.

The paper is about texts and directions of preference: draw one answer for each of k (5 in its code) directions within an angle (30 degrees)
of the one that is wanted, and keep the answer that scores best in the wanted one. Here a direction is a setting of sliders, near means
within `reach` in every slider that is on, and the score is how near a picture's measures are to what was wanted: our reading.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from diffalign.core.errors import ConfigError, did_you_mean
from diffalign.data.attributes import levels
from diffalign.infer.users.personal import Personal
from diffalign.models.users.encoders import SliderEncoder

Measure = Callable[[Image.Image], float]


@dataclass(frozen=True, slots=True)
class Selected:
    """The picture that is kept."""

    image: Image.Image
    sliders: Mapping[str, float]  # that it was drawn with
    distance: float  # mean over the sliders of |level of the measure - value wanted|, in [0, 1]


def neighbours(sliders: Mapping[str, float], count: int, reach: float, seed: int = 0) -> list[dict[str, float]]:
    """Return `count` settings: `sliders` itself, and others uniformly within `reach` of it in every slider, kept in [0, 1].

    >>> neighbours({"size": 0.95}, 1, 0.1)
    [{'size': 0.95}]
    """
    rng = np.random.default_rng(seed)
    centre = np.array(list(sliders.values()))
    moved = np.clip(centre + rng.uniform(-reach, reach, size=(count - 1, len(centre))), 0.0, 1.0)
    return [dict(sliders), *(dict(zip(sliders, row.tolist(), strict=True)) for row in moved)]


def rps_select(
    personal: Personal,
    sliders: Mapping[str, float],
    prompt: str,
    measures: Mapping[str, Measure],
    *,
    candidates: int = 5,
    reach: float = 0.1,
    seed: int = 0,
    **arguments: Any,
) -> Selected:
    """Return the best of `candidates` pictures of a prompt, each drawn with sliders near the wanted ones and noise of its own.

    Args:
        personal: a run with user_encoder slider.
        sliders: the values wanted, in [0, 1]; the others are off, and do not count.
        prompt: what to draw.
        measures: for each of these sliders what gave the training's scores, image -> number.
        candidates: how many pictures are drawn; the first has the wanted values themselves.
        reach: how far the others' values lie from the wanted ones.
        seed: of the settings and, plus 0, 1, ..., of the noise.
        arguments: of the stock pipeline's call.

    Raises ConfigError for a run without sliders, for values or counts that are none, and for a slider without its measure.

    Example:
        >>> rps_select(run, {"brightness": 0.8}, "a star", {"brightness": brightness}).image  # doctest: +SKIP
    """
    encoder = _checked(personal, sliders, measures)
    if candidates < 1 or not reach >= 0.0:
        raise ConfigError(f"candidates is {candidates} and reach {reach}; expected at least 1, and zero or more")
    drawn = []
    for place, setting in enumerate(neighbours(sliders, candidates, reach, seed)):
        noise = torch.Generator().manual_seed(seed + place)
        image = personal.for_user(setting)(prompt, generator=noise, **arguments).images[0]
        drawn.append(Selected(image, setting, _distance(encoder, image, sliders, measures)))
    return min(drawn, key=lambda one: one.distance)


def _checked(personal: Personal, sliders: Mapping[str, float], measures: Mapping[str, Measure]) -> SliderEncoder:
    """Return the run's encoder, before anything is drawn. Raises ConfigError as `rps_select`."""
    encoder = personal.encoder
    if not isinstance(encoder, SliderEncoder) or not sliders or None in sliders.values():
        raise ConfigError(f"{personal.folder}: expected a run with user_encoder slider, and the value of one slider or more")
    if missing := [name for name in sliders if name not in measures]:
        raise ConfigError(f"there is no measure of the slider `{missing[0]}`.{did_you_mean(missing[0], measures)}")
    encoder.set_to(sliders)
    return encoder


def _distance(encoder: SliderEncoder, image: Image.Image, sliders: Mapping[str, float], measures: Mapping[str, Measure]) -> float:
    """Return how far a picture is from what was wanted; 1, the farthest, where a measure cannot tell (NaN)."""
    columns = [encoder.attributes.index(name) for name in sliders]
    scores = np.array([[measures[name](image) for name in sliders]])
    away = np.abs(levels(scores, encoder.quantiles.cpu().numpy()[:, columns]) - list(sliders.values()))
    return float(np.nan_to_num(away, nan=1.0).mean())
