"""Models written as the single files of model sites: the inverse of diffusers' converters, found by sending numbers through them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from math import prod
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.layouts import Shapes, published, to_diffusers

Convert = Callable[[dict[str, Tensor]], dict[str, Tensor]]
TEXT = {"sd": {"text_encoder": "cond_stage_model.transformer."}}
TEXT["sd3"] = {"text_encoder": "text_encoders.clip_l.transformer.", "text_encoder_2": "text_encoders.clip_g.transformer."}


def write_single_file(folder: Path, file: Path, more: Mapping[str, Tensor] | None = None) -> Path:
    """Write the pipeline in `folder` (SD or SD3, without T5) as one file in its original layout, with `more` keys."""
    component = "transformer" if (folder / "transformer").is_dir() else "unet"
    family = {"transformer": "sd3", "unet": "sd"}[component]
    config = json.loads((folder / component / "config.json").read_text())
    layout = published(family, config)
    network = inverted(layout, lambda checkpoint: to_diffusers(family, checkpoint, config), weights(folder / component))
    found = {f"model.diffusion_model.{key}": value for key, value in network.items()}
    levels = len(json.loads((folder / "vae" / "config.json").read_text())["block_out_channels"])
    found |= {f"first_stage_model.{key}": value for key, value in vae_to_ldm(weights(folder / "vae"), levels).items()}
    for part, prefix in TEXT[family].items():
        for key, value in weights(folder / part).items():
            name = key if key.startswith(("text_model.", "text_projection.")) else f"text_model.{key}"
            found[prefix + name] = value
    save_file({key: value.contiguous() for key, value in (found | dict(more or {})).items()}, file)
    return file


def weights(folder: Path) -> dict[str, Tensor]:
    (file,) = folder.glob("*.safetensors")
    return load_file(file)


def inverted(layout: Shapes, convert: Convert, result: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the checkpoint of `layout` that `convert` turns into `result`: each number's way is that of its index."""
    places, start = {}, 0
    for key, shape in layout.items():
        places[key] = torch.arange(start, start := start + prod(shape)).reshape(shape)
    flat = torch.zeros(start)
    for key, index in convert(dict(places)).items():
        flat[index.flatten()] = result[key].flatten().float()
    return {key: flat[index] for key, index in places.items()}


def vae_to_ldm(state: Mapping[str, Tensor], levels: int) -> dict[str, Tensor]:
    """Return an autoencoder's weights under the names of latent-diffusion, whose attention is made of 1x1 convolutions."""
    names = {f"mid_block.resnets.{place}.": f"mid.block_{place + 1}." for place in (0, 1)} | {"conv_norm_out": "norm_out"}
    names |= {f"down_blocks.{level}.": f"down.{level}." for level in range(levels)}
    names |= {f"up_blocks.{level}.": f"up.{levels - 1 - level}." for level in range(levels)}
    names |= {"downsamplers.0.": "downsample.", "upsamplers.0.": "upsample.", ".resnets.": ".block.", "conv_shortcut": "nin_shortcut"}
    attention = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
    names |= {f"mid_block.attentions.0.{old}.": f"mid.attn_1.{new}." for old, new in attention.items()}
    found = {}
    for key, value in state.items():
        name = key
        for old, new in names.items():
            name = name.replace(old, new)
        found[name] = value[:, :, None, None] if "attn_1" in name and value.ndim == 2 else value
    return found
