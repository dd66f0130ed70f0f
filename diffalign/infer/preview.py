"""Pictures of a network as it stands in training, drawn as its method means the result to be used."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageOps
from torch import Tensor

from diffalign.data.pictures import decode_image
from diffalign.data.users import UserPairs
from diffalign.infer.negative import negative_guidance
from diffalign.infer.sample import draw, grid
from diffalign.infer.users.pipeline import UserPipeline
from diffalign.methods.config import TrainConfig
from diffalign.methods.parts import Parts
from diffalign.models.users.attach import encoder_of
from diffalign.models.users.encoders import SliderEncoder, UserEncoder

USERS = 3  # of the training whose pictures are shown, after those of nobody


@torch.no_grad()
def sheet(parts: Parts, config: TrainConfig, label: str) -> Image.Image:
    """Return the validation pictures in a grid."""
    prompts = config.validation_prompts
    rows = drawn(parts, config, prompts, range(len(prompts)), label)
    images = [image for row in rows for image in row]
    return grid(images, min(len(prompts), 8) if len(rows) == 1 else len(prompts))


@torch.no_grad()
def drawn(
    parts: Parts,
    config: TrainConfig,
    prompts: Sequence[str],
    seeds: Sequence[int],
    label: str,
    *,
    num_inference_steps: int = 25,
    guidance_scale: float = 5.0,
) -> list[list[Image.Image]]:
    """Return a picture for each prompt and seed: one row of them or, where users are told apart, that of nobody and of a few users.

    Of sliders the rows are nobody's, then each slider at 0 and at 1.
    """
    negative = parts.recipe.inference == "negative_guidance"
    pipe = parts.backbone.pipeline()
    options: dict[str, Any] = {"resolution": config.resolution, "max_sequence_length": config.max_sequence_length}
    options |= {"num_inference_steps": num_inference_steps, "guidance_scale": guidance_scale}
    if config.validation_image:
        images = [decode_image(Path(file).read_bytes(), file) for file in config.validation_image]
        if parts.backbone.picture == "none":  # of a ControlNet; `draw` frames what edit models draw from
            side = config.resolution or parts.backbone.resolution
            images = [ImageOps.fit(image, (side, side), Image.Resampling.BILINEAR) for image in images]
        options["conditioning_images"] = images * (len(prompts) // len(images))
    with negative_guidance(pipe, "default") if negative else contextlib.nullcontext():
        return [draw(pipeline, prompts, seeds, **options, true_cfg=negative, label=label) for pipeline in _pipelines(parts, pipe)]


def _pipelines(parts: Parts, pipe: Any) -> Iterator[Any]:
    """Yield what draws: the pipeline itself or, where users are told apart, that of nobody and of the first few users."""
    if not isinstance(parts.pairs, UserPairs):
        yield pipe
        return
    yield UserPipeline(pipe, "")
    encoder = encoder_of(parts.backbone.denoiser)
    for evidence in _shown(parts.pairs, encoder):
        condition = {name: value[None].to(pipe.device) for name, value in evidence.items() if name != "user_kept"}
        yield UserPipeline(pipe, "", encoder(condition, 1)[0].float().cpu())


def _shown(pairs: UserPairs, encoder: UserEncoder) -> Iterator[dict[str, Tensor]]:
    """Yield the evidence of a few users, or each slider at its ends, the others off."""
    if pairs.users is not None:
        yield from (pairs[int(positions[0]), 0]["evidence"] for positions in pairs.users.positions[:USERS])
    elif isinstance(encoder, SliderEncoder):
        yield from ({"user": encoder.set_to({name: end})} for name in encoder.attributes for end in (0.0, 1.0))
