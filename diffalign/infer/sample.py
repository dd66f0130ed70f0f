"""Pictures from a pipeline, one seed an image, so that two models can be compared draw by draw."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from tqdm.auto import tqdm


def draw(
    pipe: Any,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    num_inference_steps: int = 25,
    guidance_scale: float = 5.0,
    batch_size: int | None = None,
    label: str = "draw",
) -> list[Image.Image]:
    """Return one image for each prompt and seed. The same seed gives the same starting noise whatever the model or the batch.

    `batch_size` is 32 for the embedded model and 4 for 64x64 latents, if not given.
    """
    batch_size = batch_size or max(1, min(32, 2**14 // pipe.unet.config.sample_size**2))
    images: list[Image.Image] = []
    with tqdm(total=len(prompts), desc=label, unit=" images", disable=None if len(prompts) > 16 else True) as bar:
        for start in range(0, len(prompts), batch_size):
            part = list(prompts[start : start + batch_size])
            generators = [torch.Generator().manual_seed(seed) for seed in seeds[start : start + batch_size]]
            out = pipe(part, num_inference_steps=num_inference_steps, guidance_scale=guidance_scale, generator=generators)
            images += out.images
            bar.update(len(part))
    return images


def grid(images: Sequence[Image.Image], columns: int) -> Image.Image:
    """Return the images, all of one size, row by row on a white sheet."""
    width, height = images[0].size
    sheet = Image.new("RGB", (columns * (width + 2), -(-len(images) // columns) * (height + 2)), "white")
    for index, image in enumerate(images):
        sheet.paste(image, (index % columns * (width + 2), index // columns * (height + 2)))
    return sheet
