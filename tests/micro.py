"""A model and data small enough for a test to train: a random Stable Diffusion of 80,000 numbers, and pairs of drawings."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from diffalign.data.world.captions import random_caption
from diffalign.data.world.scenes import random_scene, render
from tests.micro_models import write_micro


def write_micro_sd(folder: Path, **schedule: Any) -> Path:
    """Write a random Stable Diffusion (32 px, factor 4) in diffusers layout; keywords go into the scheduler's config."""
    return write_micro("sd", folder, **schedule)


def write_pairs(
    path: Path, count: int = 24, side: int = 40, label: float | None = None, seed: int = 0, *, scored: bool = False, users: int = 0
) -> Path:
    """Write pairs of drawings in Pick-a-Pic's columns; labels alternate unless given. Drawings are larger than the model's 32 px.

    With `scored` each has a PickScore, which agrees with the label, with `users` a user, one of so many.
    """
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(count):
        scenes = [random_scene(rng, shape="star") for _ in range(2)]
        images = []
        for scene in scenes:
            buffer = io.BytesIO()
            render(scene, rng).resize((side, side + 8 * (i % 2))).save(buffer, "PNG")
            images.append(buffer.getvalue())
        first = float(i % 2) if label is None else label
        prompt = random_caption(scenes[0], rng)
        rows.append({"caption": prompt, "jpg_0": images[0], "jpg_1": images[1], "label_0": first, "label_1": 1.0 - first})
        if scored:
            rows[-1] |= {"ps_score_0": 0.2 + 0.02 * first, "ps_score_1": 0.2 + 0.02 * (1.0 - first)}
        if users:
            rows[-1] |= {"user_id": f"user {i % users}"}
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path
