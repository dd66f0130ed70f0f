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
from diffalign.models.backbones.table import BACKBONES, component_of, family_of
from diffalign.models.control import FOLDER as CONTROLNET
from diffalign.models.control import kind_of
from diffalign.models.lora_layers import fused


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
    batch_size: int | None = None,  # 32 for the embedded models, 4 for 64x64 latents
    label: str = "draw",
    bar: tqdm[Any] | None = None,
    keep: Callable[[Tensor], None] | None = None,
    begins: Callable[[int], None] | None = None,
    conditioning_images: Sequence[Image.Image] | None = None,
) -> list[Image.Image]:
    """Return one image for each prompt and seed. The same seed gives the same starting noise whatever the model or the batch.

    `pipe` is a stock pipeline, or a user's (`for_user`); `resolution` (pixels) and `max_sequence_length` (T5 tokens) are its own where
    None. `true_cfg` draws a guidance-distilled model with real guidance. `bar` counts the images of several calls; without one, a call of
    more than 16 has one named `label`. `keep` takes each batch's last latents (n, C, H, W), `begins` the number of each solver step.
    Raises ConfigError for `conditioning_images` without a ControlNet or edit model, or the reverse, and for an SD3 without a CLIP.
    """
    stock, family = _drawable(pipe, conditioning_images)
    options = {**family.call_options, **family.guidance(guidance_scale, true_cfg), **_sizes(stock, resolution, max_sequence_length)}
    size = batch_size or _batch_size(family.sample_size(stock) if resolution is None else resolution // family.factor(stock))
    if conditioning_images is not None and family.picture != "none":  # of several in one call all are those of one picture
        size, conditioning_images = 1, [squared(image, family, resolution) for image in conditioning_images]
    images, hidden = list[Image.Image](), bar is not None or len(prompts) <= 16
    with _fused(stock, begins), progress(total=len(prompts), desc=label, unit="images", hidden=hidden) as own_bar:
        for start in range(0, len(prompts), size):
            part, last = slice(start, start + size), list[Tensor]()
            arguments = _of_batch(stock, options, prompts[part], seeds[part], conditioning_images and conditioning_images[part])
            arguments |= {} if keep is None and begins is None else _watched(stock, last, begins)
            images += _drawn(pipe, stock, seeds[start], {"num_inference_steps": num_inference_steps, **arguments})
            if keep is not None:
                keep(family.unpacked(stock, last[0], images[-1].height, images[-1].width))
            (own_bar if bar is None else bar).update(len(prompts[part]))
    return images


def _fused(pipe: Any, begins: Callable[[int], None] | None) -> contextlib.AbstractContextManager[None]:
    """Return a block in which an adapter is fused where that costs no digits; what is called between steps may exchange its weights."""
    return contextlib.nullcontext() if begins is not None else fused(getattr(pipe, component_of(pipe)))


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


def _drawn(pipe: Any, stock: Any, seed: int, arguments: Mapping[str, Any]) -> list[Image.Image]:
    """Return the pictures of one call; `seed` is for what the pipeline draws of conditioning images."""
    with _encoded_in_precision(stock), _posteriors_of(stock, seed):
        return pipe(**arguments).images


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


def _of_batch(
    pipe: Any, options: Mapping[str, Any], prompts: Sequence[str], seeds: Sequence[int], images: Sequence[Image.Image] | None
) -> dict[str, Any]:
    """Return the arguments of a pipeline's call: the options, and those that there is one of for each picture."""
    arguments: dict[str, Any] = {"prompt": list(prompts), "generator": [torch.Generator().manual_seed(seed) for seed in seeds]}
    if "negative_prompt" in options:
        arguments["negative_prompt"] = [""] * len(prompts)
    if images is not None:
        arguments[kind_of(pipe).image if CONTROLNET in pipe.components else "image"] = list(images)
    return {**options, **arguments}


@contextlib.contextmanager
def _posteriors_of(pipe: Any, seed: int) -> Iterator[None]:
    """Draw by `seed` from the posteriors of a ControlNet's conditioning images: the pipeline of SD3 asks no generator for it."""
    if CONTROLNET not in pipe.components:
        yield
        return
    with torch.random.fork_rng([pipe.device] if pipe.device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def _drawable(pipe: Any, conditioning_images: Sequence[Image.Image] | None) -> tuple[Any, type[Pretrained]]:
    """Return the stock pipeline and its family. Raises ConfigError for one that cannot draw, or not with or without conditioning images."""
    pipe = pipe.pipe if isinstance(pipe, UserPipeline) else pipe
    family = BACKBONES[family_of(pipe)]
    if (why := family.undrawable(pipe)) is not None:
        raise ConfigError(why)
    needed = CONTROLNET in pipe.components or family.picture == "needed"
    if (conditioning_images is None) == needed and not (family.picture == "optional" and CONTROLNET not in pipe.components):
        raise ConfigError(f"a {type(pipe).__name__} {'needs' if conditioning_images is None else 'takes no'} conditioning images")
    return pipe, family


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
