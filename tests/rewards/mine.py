"""A scorer as a user writes it: a function in a file, here one that can be made to fail."""

from __future__ import annotations

import numpy as np

calls: list[int] = []
fail_after: list[int] = []  # images until the next failure; none if empty


def redness(images, prompts):
    """Return the mean red of each image, and NaN where the prompt says `skip`."""
    calls.append(len(images))
    if fail_after:
        fail_after[0] -= len(images)
        if fail_after[0] < 0:
            raise KeyboardInterrupt
    return [np.nan if prompt == "skip" else float(np.asarray(image)[..., 0].mean()) for image, prompt in zip(images, prompts, strict=True)]


def one(images, prompts):
    """Return one number for them all."""
    return 1.0
