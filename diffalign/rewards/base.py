"""What every scorer is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from PIL import Image

from diffalign.core.errors import ConfigError, shortened


class Scorer(Protocol):
    """Scores images under their prompts; higher is better. What one model's numbers mean says nothing of another's.

    An image has the same score whatever is scored beside it.
    """

    @property
    def name(self) -> str:
        """Return what its score is called in tables."""
        ...

    @property
    def scale(self) -> str:
        """Return what the number means and its usual range, in words."""
        ...

    @property
    def unit(self) -> str | None:
        """Return the number's unit in a word, such as `cosine`, by which constants of another one are refused; None where nobody says."""
        ...

    @property
    def licence(self) -> str:
        """Return the licence of the weights, or of the code where there are none."""
        ...

    @property
    def max_tokens(self) -> int | None:
        """Return how much of a prompt is read, the rest being cut; None where a prompt is read whole, or not at all."""
        ...

    @property
    def revision(self) -> str | None:
        """Return the hub's commit, branch or tag that the weights were asked for by, if any."""
        ...

    def __call__(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> np.ndarray:
        """Return scores (N,) as float64; NaN where an image cannot be judged under its prompt. Images are RGB, of any size."""
        ...


def check_arguments(images: Sequence[Any], prompts: Sequence[str]) -> None:
    """Raise ConfigError for arguments of a scorer that are not as many images as prompts; swapped ones are called by their types."""
    if isinstance(images, str | bytes | Image.Image) or isinstance(prompts, str | Image.Image):
        raise ConfigError(f"a scorer takes a list of images and a list of prompts; found a {_type(images)} and a {_type(prompts)}")
    if odd := [image for image in images if not isinstance(image, Image.Image)]:
        raise ConfigError(f"a scorer takes (images, prompts); among its images is a {_type(odd[0])}: {shortened(repr(odd[0]))}")
    if odd := [prompt for prompt in prompts if not isinstance(prompt, str)]:
        raise ConfigError(f"a scorer takes (images, prompts); among its prompts is a {_type(odd[0])}: {shortened(repr(odd[0]))}")
    if len(images) != len(prompts):
        raise ConfigError(f"a scorer takes a prompt for each image; found {len(images)} images and {len(prompts)} prompts")


def _type(value: Any) -> str:
    return type(value).__name__


def standing(scorer: Mapping[str, Any]) -> str:
    """Return in words whether training used a scorer of `eval.json`."""
    if scorer.get("chose"):
        return "chose the weights"
    return {True: "held out", False: "seen in training", None: "unknown whether seen in training"}[scorer.get("held_out")]


def record(comparison: Mapping[str, Any]) -> str:
    """Return won, lost and tied of a comparison of `eval.json`, with the sign test and the wins that can be seen.

    >>> record({"wins": 17, "losses": 3, "ties": 4, "sign_test_p": 0.0026, "visible_wins": 10})
    '17 won, 3 lost, 4 tied, p 0.0026; 10 of 17 wins can be seen'
    """
    text = f"{comparison['wins']} won, {comparison['losses']} lost, {comparison['ties']} tied, p {comparison['sign_test_p']:.2g}"
    if not comparison["wins"] or comparison.get("visible_wins") is None:
        return text
    return f"{text}; {comparison['visible_wins']} of {comparison['wins']} wins can be seen"
