"""The name of a layer in LoRA files for ComfyUI, by where it lies in the published layout of its family.

ComfyUI looks for the LoRA of a weight `diffusion_model.X.weight` under two names: `diffusion_model.X`, and `lora_unet_X` with
underscores for dots (comfy/lora.py). kohya's scripts read the second name alone. X is there diffusers' own path for Stable Diffusion 1
and 2, and the published one for later models.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffalign.core.errors import ConfigError
from diffalign.models.backbones.places import Place
from diffalign.models.backbones.table import BACKBONES


def place(family: str, layer: str, config: Mapping[str, Any]) -> Place:
    """Return where `layer` lies in the published layout of a family; `config` is the denoiser's.

    Raises ConfigError that names the layer if no place is known for it.
    """
    published = BACKBONES[family].place(layer, config)
    if published is None:
        raise ConfigError(
            f"`{layer}`: no place is known for this layer in the published layout of {family}, so there is no ComfyUI file of it; "
            "leave `comfyui` out of --formats, or train with other --lora_layers"
        )
    return published


def file_key(family: str, layer: str, published: Place) -> tuple[str, str, str]:
    """Return the key of a place in a LoRA file up to its last part, and the names of its down and its up matrix."""
    naming = BACKBONES[family].lora_naming
    if naming == "comfyui":
        return f"diffusion_model.{published.module}", "lora_A.weight", "lora_B.weight"
    path = layer if naming == "kohya_diffusers" else published.module
    return f"lora_unet_{path.replace('.', '_')}", "lora_down.weight", "lora_up.weight"
