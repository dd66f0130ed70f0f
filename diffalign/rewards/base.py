"""What every scorer is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image


class Scorer(Protocol):
    """Scores images under their prompts; higher is better. What one model's numbers mean says nothing of another's.

    An image has the same score whatever is scored beside it.
    """

    name: str  # of the score in tables
    scale: str  # what the number means and its usual range, in words
    licence: str  # of the weights, or of the code where there are none
    max_tokens: int | None  # of a prompt; what is longer is cut; None where a prompt is read whole, or not at all
    revision: str | None  # hub commit, branch or tag the weights were asked for by; None for local files and no weights

    def __call__(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> np.ndarray:
        """Return scores (N,) as float64; NaN where an image cannot be judged under its prompt. Images are RGB, of any size."""
        ...
