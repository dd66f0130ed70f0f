"""Pictures from a pipeline, one seed an image, so that two models can be compared draw by draw."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from tqdm.std import tqdm

from diffalign.core.errors import ConfigError
from diffalign.core.progress import progress
from diffalign.infer.users.pipeline import UserPipeline
from diffalign.models.backbones.table import BACKBONES, family_of
from diffalign.models.control import FOLDER as CONTROLNET


def draw(
    pipe: Any,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    num_inference_steps: int = 25,
    guidance_scale: float = 5.0,
    resolution: int | None = None,
    max_sequence_length: int | None = None,
    true_cfg: bool = False,
    batch_size: int | None = None,
    label: str = "draw",
    bar: tqdm[Any] | None = None,
    keep: Callable[[Tensor], None] | None = None,
    begins: Callable[[int], None] | None = None,
    conditioning_images: Sequence[Image.Image] | None = None,
) -> list[Image.Image]:
    """Return one image for each prompt and seed. The same seed gives the same starting noise whatever the model or the batch.

    `pipe` is a stock pipeline, or a user's (`for_user` of a personalised run).
    `resolution` (pixels) and `max_sequence_length` (T5 tokens) are the pipeline's own where None. `true_cfg` draws a
    guidance-distilled model (Flux dev) with real guidance at `guidance_scale`, as negative guidance needs it. `batch_size` is 32 for
    the embedded models and 4 for 64x64 latents, if not given. `bar` counts the images of several calls; without one a call of more
    than 16 images has its own, named `label`. `keep` takes the latents (n, C, H, W) of each batch that the images are decoded from, as
    they are trained on; `begins` is called as each solver step of a batch begins, with its number. `conditioning_images` are for each
    prompt what the pipeline's ControlNet reads. Raises ConfigError for an SD3 without one of its CLIPs, and for conditioning images
    without a ControlNet, or the other way round.
    """
    stock = pipe.pipe if isinstance(pipe, UserPipeline) else pipe
    family = BACKBONES[family_of(stock)]
    if (why := family.undrawable(stock)) is not None:
        raise ConfigError(why)
    if (conditioning_images is None) == (CONTROLNET in stock.components):
        raise ConfigError(f"a {type(stock).__name__} {'needs' if conditioning_images is None else 'takes no'} conditioning images")
    options = {**family.call_options, **family.guidance(guidance_scale, true_cfg), **_sizes(stock, resolution, max_sequence_length)}
    side = resolution // family.factor(stock) if resolution is not None else family.sample_size(stock)
    size = batch_size or max(1, min(32, 2**14 // side**2))
    images: list[Image.Image] = []
    with progress(total=len(prompts), desc=label, unit="images", hidden=bar is not None or len(prompts) <= 16) as own_bar:
        for start in range(0, len(prompts), size):
            part = list(prompts[start : start + size])
            generators = [torch.Generator().manual_seed(seed) for seed in seeds[start : start + size]]
            negative = {"negative_prompt": [""] * len(part)} if "negative_prompt" in options else {}
            shown = {} if conditioning_images is None else {"image": list(conditioning_images[start : start + size])}
            last = list[Tensor]()
            watched = {} if keep is None and begins is None else _watched(stock, last, begins)
            if begins is not None:
                begins(0)
            arguments = {**options, **negative, **watched, **shown}
            images += pipe(prompt=part, num_inference_steps=num_inference_steps, generator=generators, **arguments).images
            if keep is not None:
                keep(family.unpacked(stock, last[0], images[-1].height, images[-1].width))
            (own_bar if bar is None else bar).update(len(part))
    return images


def _sizes(pipe: Any, resolution: int | None, max_sequence_length: int | None) -> dict[str, Any]:
    """Return the arguments by which a pipeline draws in another size, and reads prompts of another length, than its own."""
    sizes = {} if resolution is None else {"height": resolution, "width": resolution}
    cuts = "max_sequence_length" in inspect.signature(type(pipe).__call__).parameters  # ERNIE-Image reads prompts as long as they are
    return {**sizes, "max_sequence_length": max_sequence_length} if cuts and max_sequence_length is not None else sizes


def _watched(pipe: Any, last: list[Tensor], begins: Callable[[int], None] | None) -> dict[str, Any]:
    """Return the arguments by which a pipeline of this class leaves the latents of its last step in `last`, and calls `begins`."""

    def after_step(_: Any, step: int, __: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        last[:] = [tensors["latents"]]
        if begins is not None:
            begins(step + 1)
        return {}

    if "callback" in inspect.signature(type(pipe).__call__).parameters:  # diffusers' former one, which PixArt has
        return {"callback": lambda step, t, latents: after_step(pipe, step, t, {"latents": latents})}
    return {"callback_on_step_end": after_step}


def grid(images: Sequence[Image.Image], columns: int) -> Image.Image:
    """Return the images, all of one size, row by row on a white sheet."""
    width, height = images[0].size
    sheet = Image.new("RGB", (columns * (width + 2), -(-len(images) // columns) * (height + 2)), "white")
    for index, image in enumerate(images):
        sheet.paste(image, (index % columns * (width + 2), index // columns * (height + 2)))
    return sheet
