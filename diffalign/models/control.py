"""ControlNets (Zhang et al., 2302.05543) beside a frozen UNet: a trainable copy of its encoder that also reads a conditioning image.

Its outputs, zero before training, are added to the UNet's skip connections. Classes and files are those of diffusers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import ControlNetModel, StableDiffusionControlNetPipeline, StableDiffusionXLControlNetPipeline
from torch import Tensor, nn

from diffalign.core.errors import CheckpointError
from diffalign.models.weights import UNREADABLE, check_finite, read_network

FOLDER = "controlnet"  # of a run's result, and its name in a pipeline
WIDTHS = (16, 32, 96, 256)  # channels of the layers that read the conditioning image in pixels; each but the first halves its sides
# The stock pipeline of a family, and the one that draws with a ControlNet, by the names of their classes.
PIPELINES = {
    "StableDiffusionPipeline": StableDiffusionControlNetPipeline,
    "StableDiffusionXLPipeline": StableDiffusionXLControlNetPipeline,
}
PLAIN = {kind.__name__: name for name, kind in PIPELINES.items()}
# What the configs of both networks say of what they have in common: the ControlNet's blocks are those of the UNet's encoder.
SHARED = ("in_channels", "down_block_types", "block_out_channels", "layers_per_block", "cross_attention_dim", "addition_embed_type")


class Controlled(nn.Module):
    """A UNet with a ControlNet, called as the UNet alone but for one more argument, the conditioning image."""

    def __init__(self, unet: Any, controlnet: Any) -> None:
        super().__init__()
        self.unet, self.controlnet = unet, controlnet

    @property
    def dtype(self) -> torch.dtype:
        """Return the dtype of the UNet, which is that of its inputs."""
        return self.unet.dtype

    @property
    def config(self) -> Mapping[str, Any]:
        """Return the config of the UNet."""
        return self.unet.config

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor,
        *,
        conditioning_image: Tensor,
        added_cond_kwargs: dict[str, Tensor] | None = None,
        return_dict: bool = False,
    ) -> tuple[Tensor]:
        """Return the UNet's output for samples (N, C, H, W), whose conditioning images (N, 3, h, w) are pixels in [0, 1]."""
        shared = {"added_cond_kwargs": added_cond_kwargs, "return_dict": return_dict}
        down, middle = self.controlnet(sample, timestep, encoder_hidden_states, conditioning_image.to(sample), **shared)
        residuals = {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
        return self.unet(sample, timestep, encoder_hidden_states, **residuals, **shared)


def new_controlnet(unet: Any, factor: int) -> Any:
    """Return a ControlNet that changes nothing yet: the UNet's encoder, float32, on its device.

    `factor` is how many pixels a latent row stands for; by it the conditioning image is brought to the latent's size.
    """
    widths = WIDTHS[: 1 + int(math.log2(factor))]
    with unet.device:
        return ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=widths).float()


def read_controlnet(name: str, unet: Any) -> Any:
    """Return the ControlNet in a folder (of diffusers, or a run's `controlnet`) or of a hub id, float32.

    Raises CheckpointError for what does not load, and for one that was made for another UNet.
    """
    if unet.device.type == "meta":  # of a dry run, which counts the weights and reads none
        with unet.device:
            config: Any = ControlNetModel.load_config(name)
            network: Any = ControlNetModel.from_config(config)
    elif Path(name).is_dir():
        network = read_network(ControlNetModel, Path(name), dtype=torch.float32)
    else:
        try:
            network = ControlNetModel.from_pretrained(name, use_safetensors=True, dtype=torch.float32)
        except UNREADABLE as error:
            raise CheckpointError(f"{name}: does not load as a ControlNetModel ({error})") from error
        check_finite(name, network)
    for key in SHARED:
        if (there := network.config.get(key)) != (expected := unet.config.get(key)):
            raise CheckpointError(f"{name}: made for another model: `{key}` is {there}; expected {expected}, as in its UNet")
    return network.to(unet.device)


def check_pipeline(pipe: Any) -> None:
    """Raise CheckpointError for a pipeline of a family without ControlNets."""
    if (name := type(pipe).__name__) not in PIPELINES:
        raise CheckpointError(f"{pipe.name_or_path}: a {name}; ControlNets are of {', '.join(PIPELINES)}")


def pipeline_of(pipe: Any, controlnet: Any, options: Mapping[str, Any]) -> Any:
    """Return the stock pipeline that draws with a ControlNet, of the parts of a pipeline without one; `options` are its family's."""
    flags = {flag: value for flag, value in pipe.config.items() if flag not in pipe.components and not flag.startswith("_")}
    made = PIPELINES[type(pipe).__name__](**{**flags, **pipe.components, **options, FOLDER: controlnet})
    made.set_progress_bar_config(disable=True)
    return made
