"""What every scorer is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image


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


def standing(scorer: Mapping[str, Any]) -> str:
    """Return what a scorer of `eval.json` is to a run: what its word is worth."""
    if scorer.get("chose"):
        return "chose the weights"
    return {True: "held out", False: "seen in training", None: "unknown whether seen in training"}[scorer.get("held_out")]
