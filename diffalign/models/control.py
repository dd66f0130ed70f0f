"""ControlNets (Zhang et al., 2302.05543) beside a frozen denoiser: a trainable copy of its first blocks that also reads an image.

Its outputs, zero before training, are added to what the denoiser's blocks hand on. Classes and files are those of diffusers.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    ControlNetModel,
    FluxControlNetModel,
    FluxControlNetPipeline,
    SD3ControlNetModel,
    StableDiffusion3ControlNetPipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionXLControlNetPipeline,
)

from diffalign.core.errors import CheckpointError
from diffalign.models.controlled import Controlled, ControlledFlux, ControlledSD3, ControlledUNet
from diffalign.models.weights import UNREADABLE, check_finite, read_network

FOLDER = "controlnet"  # of a run's result, and its name in a pipeline
WIDTHS = (16, 32, 96, 256)  # channels of the layers that read the conditioning image in pixels; each but the first halves its sides
EMBEDDERS = ("time_text_embed", "context_embedder")  # of a transformer


@dataclass(frozen=True, slots=True)
class Kind:
    """What the ControlNets of a family are, by the classes of diffusers."""

    network: Any
    pipeline: Any  # the stock one, which draws with it
    controlled: type[Controlled]
    new: Callable[[Any, int], Any]  # of a denoiser, and of how many pixels a latent row stands for
    shared: tuple[str, ...]  # what the configs of both networks say of what they have in common
    image: str  # the argument of the pipeline's call that takes conditioning images
    alone: Mapping[str, Any]  # what the config of a ControlNet must say so that it needs nothing but a conditioning image


def new_controlnet(kind: Kind, denoiser: Any, factor: int) -> Any:
    """Return a ControlNet that changes nothing yet: the denoiser's first blocks, float32, on its device.

    `factor` is how many pixels a latent row stands for; where the ControlNet reads pixels, it brings them to the latent's size.
    """
    with denoiser.device:
        return kind.new(denoiser, factor).float()


def _of_unet(unet: Any, factor: int) -> Any:
    return ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=WIDTHS[: 1 + int(math.log2(factor))])


def _of_sd3(transformer: Any, factor: int) -> Any:  # noqa: ARG001  # it reads latents
    """Return one of at most 12 blocks, as in diffusers, without the transformer's last, which gives the prompt's side away."""
    layers = min(12, transformer.config.num_layers - 1)
    return _copy(SD3ControlNetModel, transformer, ("pos_embed", *EMBEDDERS), ("transformer_blocks",), num_layers=layers)


def _of_flux(transformer: Any, factor: int) -> Any:  # noqa: ARG001  # it reads latents
    """Return one of at most 4 blocks of two streams and 10 of one, as in diffusers."""
    config = transformer.config
    layers = {"num_layers": min(4, config.num_layers), "num_single_layers": min(10, config.num_single_layers)}
    blocks = ("transformer_blocks", "single_transformer_blocks")
    return _copy(FluxControlNetModel, transformer, ("x_embedder", *EMBEDDERS), blocks, **layers)


def _copy(network: Any, transformer: Any, parts: Sequence[str], blocks: Sequence[str], **layers: int) -> Any:
    """Return a ControlNet with a transformer's config and weights, of so many layers; the class's own way changes that config."""
    keys = inspect.signature(network.__init__).parameters
    made = network.from_config({name: value for name, value in {**transformer.config, **layers}.items() if name in keys})
    for name in (*parts, *blocks):
        getattr(made, name).load_state_dict(getattr(transformer, name).state_dict(), strict=name not in blocks)
    return made


_UNET = ("in_channels", "down_block_types", "block_out_channels", "layers_per_block", "cross_attention_dim", "addition_embed_type")
_TRANSFORMER = ("in_channels", "num_attention_heads", "attention_head_dim", "joint_attention_dim", "pooled_projection_dim")
# By the class of the stock pipeline without one.
KINDS = {
    "StableDiffusionPipeline": Kind(ControlNetModel, StableDiffusionControlNetPipeline, ControlledUNet, _of_unet, _UNET, "image", {}),
    "StableDiffusionXLPipeline": Kind(ControlNetModel, StableDiffusionXLControlNetPipeline, ControlledUNet, _of_unet, _UNET, "image", {}),
    "StableDiffusion3Pipeline": Kind(
        SD3ControlNetModel,
        StableDiffusion3ControlNetPipeline,
        ControlledSD3,
        _of_sd3,
        _TRANSFORMER,
        "control_image",
        {"extra_conditioning_channels": 0, "use_pos_embed": True},
    ),
    "FluxPipeline": Kind(
        FluxControlNetModel, FluxControlNetPipeline, ControlledFlux, _of_flux, _TRANSFORMER, "control_image", {"num_mode": None}
    ),
}
PLAIN = {kind.pipeline.__name__: name for name, kind in KINDS.items()}


def kind_of(pipe: Any) -> Kind:
    """Return what the ControlNets of a stock pipeline are, with one or without. Raises CheckpointError for a family without ControlNets."""
    name = type(pipe).__name__
    if (kind := KINDS.get(PLAIN.get(name, name))) is None:
        raise CheckpointError(f"{pipe.name_or_path}: a {name}; ControlNets are of {', '.join(KINDS)}")
    return kind


def read_controlnet(kind: Kind, name: str, denoiser: Any) -> Any:
    """Return the ControlNet in a folder (of diffusers, or a run's `controlnet`) or of a hub id, float32.

    Raises CheckpointError for what does not load, for one that was made for another denoiser, and for one that reads more than an image.
    """
    if denoiser.device.type == "meta":  # of a dry run, which counts the weights and reads none
        with denoiser.device:
            network: Any = kind.network.from_config(kind.network.load_config(name))
    elif Path(name).is_dir():
        network = read_network(kind.network, Path(name), dtype=torch.float32)
    else:
        try:
            network = kind.network.from_pretrained(name, use_safetensors=True, dtype=torch.float32)
        except UNREADABLE as error:
            raise CheckpointError(f"{name}: does not load as a {kind.network.__name__} ({error})") from error
        check_finite(name, network)
    for key, expected in kind.alone.items():
        if (there := network.config.get(key, expected)) != expected:
            raise CheckpointError(f"{name}: `{key}` is {there}; expected {expected}, as ControlNets have that read one conditioning image")
    for key in kind.shared:
        if (there := network.config.get(key)) != (expected := denoiser.config.get(key)):
            raise CheckpointError(f"{name}: made for another model: `{key}` is {there}; expected {expected}, as in its denoiser")
    if network.config.get("guidance_embeds") and not denoiser.config.get("guidance_embeds"):
        raise CheckpointError(f"{name}: it is told a guidance scale, which this model is not; expected one made for such a model")
    return network.to(denoiser.device)


def pipeline_of(pipe: Any, controlnet: Any, options: Mapping[str, Any]) -> Any:
    """Return the stock pipeline that draws with a ControlNet, of the parts of a pipeline without one; `options` are its family's."""
    flags = {flag: value for flag, value in pipe.config.items() if flag not in pipe.components and not flag.startswith("_")}
    made = kind_of(pipe).pipeline(**{**flags, **pipe.components, **options, FOLDER: controlnet})
    made.set_progress_bar_config(disable=True)
    return made
