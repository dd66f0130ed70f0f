"""Pictures from a pipeline, one seed an image, so that two models can be compared draw by draw."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from PIL import Image, ImageOps
from torch import Tensor
from tqdm.std import tqdm

from diffalign.core.errors import ConfigError
from diffalign.core.progress import progress
from diffalign.infer.users.pipeline import UserPipeline
from diffalign.models.backbones.pretrained import Pretrained
from diffalign.models.backbones.table import BACKBONES, family_of
from diffalign.models.control import FOLDER as CONTROLNET
from diffalign.models.control import kind_of


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

    `pipe` is a stock pipeline, or a user's (`for_user` of a personalised run); `resolution` (pixels) and `max_sequence_length` (T5
    tokens) are its own where None. `true_cfg` draws a guidance-distilled model (Flux dev) with real guidance, as negative guidance needs
    it. `batch_size` is 32 for the embedded models, 4 for 64x64 latents. `bar` counts the images of several calls; without one a call of
    more than 16 has its own, named `label`. `keep` takes each batch's last latents (n, C, H, W), `begins` the number of each solver step.
    `conditioning_images` are for a ControlNet or an edit model. Raises ConfigError for them without one, or the reverse, and for an SD3
    without a CLIP.
    """
    stock = pipe.pipe if isinstance(pipe, UserPipeline) else pipe
    family = _drawable(stock, conditioning_images)
    options = {**family.call_options, **family.guidance(guidance_scale, true_cfg), **_sizes(stock, resolution, max_sequence_length)}
    if conditioning_images is not None and family.picture != "none":
        batch_size = 1  # several input pictures in one call are those of one picture, or must be of one size
        conditioning_images = [squared(image, family, resolution) for image in conditioning_images]
    size = batch_size or _batch_size(family.sample_size(stock) if resolution is None else resolution // family.factor(stock))
    images, hidden = list[Image.Image](), bar is not None or len(prompts) <= 16
    with progress(total=len(prompts), desc=label, unit="images", hidden=hidden) as own_bar:
        for start in range(0, len(prompts), size):
            part, last = slice(start, start + size), list[Tensor]()
            arguments = options | _of_batch(options, prompts[part], seeds[part])
            if conditioning_images is not None:
                arguments[_image_argument(stock)] = list(conditioning_images[part])
            arguments |= {} if keep is None and begins is None else _watched(stock, last, begins)
            with _encoded_in_precision(stock), _posteriors_of(stock, None if conditioning_images is None else seeds[start]):
                images += pipe(num_inference_steps=num_inference_steps, **arguments).images
            if keep is not None:
                keep(family.unpacked(stock, last[0], images[-1].height, images[-1].width))
            (own_bar if bar is None else bar).update(len(prompts[part]))
    return images


@contextlib.contextmanager
def _encoded_in_precision(pipe: Any) -> Iterator[None]:
    """Let an edit model's pipeline encode input pictures in the precision of its VAE, which in training is not that of its prompts."""
    name = "_encode_vae_image"
    encode = getattr(pipe, name, None)
    if encode is None:
        yield
        return
    setattr(pipe, name, lambda image, generator: encode(image=image.to(pipe.vae.dtype), generator=generator).to(image.dtype))
    try:
        yield
    finally:
        delattr(pipe, name)


def squared(image: Image.Image, family: type[Pretrained], resolution: int | None) -> Image.Image:
    """Return the centre of an input picture, as training frames it; of the size of the pictures where the pipeline would keep its own."""
    side = resolution if resolution is not None and family.picture == "optional" else min(image.size)
    return ImageOps.fit(image, (side, side), Image.Resampling.LANCZOS)


def _sizes(pipe: Any, resolution: int | None, max_sequence_length: int | None) -> dict[str, Any]:
    """Return the arguments by which a pipeline draws in another size, and reads prompts of another length, than its own."""
    sizes = {} if resolution is None else BACKBONES[family_of(pipe)].sized(pipe, resolution)
    if resolution is not None and "max_area" in inspect.signature(type(pipe).__call__).parameters:  # Kontext's, else a megapixel
        sizes["max_area"] = resolution * resolution
    cuts = "max_sequence_length" in inspect.signature(type(pipe).__call__).parameters  # ERNIE-Image reads prompts as long as they are
    return {**sizes, "max_sequence_length": max_sequence_length} if cuts and max_sequence_length is not None else sizes


def _batch_size(side: int) -> int:
    """Return how many pictures of so large latents are drawn at once."""
    return max(1, min(32, 2**14 // side**2))


def _of_batch(options: Mapping[str, Any], prompts: Sequence[str], seeds: Sequence[int]) -> dict[str, Any]:
    """Return the arguments of a pipeline's call that there is one of for each picture."""
    arguments: dict[str, Any] = {"prompt": list(prompts), "generator": [torch.Generator().manual_seed(seed) for seed in seeds]}
    if "negative_prompt" in options:
        arguments["negative_prompt"] = [""] * len(prompts)
    return arguments


def _image_argument(pipe: Any) -> str:
    """Return what a pipeline calls conditioning images."""
    return kind_of(pipe).image if CONTROLNET in pipe.components else "image"


@contextlib.contextmanager
def _posteriors_of(pipe: Any, seed: int | None) -> Iterator[None]:
    """Draw from the posterior of conditioning images by `seed`, where there are such: the pipeline of SD3 asks no generator for it."""
    if seed is None:
        yield
        return
    with torch.random.fork_rng([pipe.device] if pipe.device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def _drawable(pipe: Any, conditioning_images: Sequence[Image.Image] | None) -> type[Pretrained]:
    """Return the family of a stock pipeline. Raises ConfigError for one that cannot draw, or not with or without conditioning images."""
    family = BACKBONES[family_of(pipe)]
    if (why := family.undrawable(pipe)) is not None:
        raise ConfigError(why)
    needed = CONTROLNET in pipe.components or family.picture == "needed"
    if (conditioning_images is None) == needed and not (family.picture == "optional" and CONTROLNET not in pipe.components):
        raise ConfigError(f"a {type(pipe).__name__} {'needs' if conditioning_images is None else 'takes no'} conditioning images")
    return family


def _watched(pipe: Any, last: list[Tensor], begins: Callable[[int], None] | None) -> dict[str, Any]:
    """Return the arguments by which a pipeline of this class leaves the latents of its last step in `last`; call `begins` for the first
    step, and let the pipeline call it for the others."""
    if begins is not None:
        begins(0)

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
