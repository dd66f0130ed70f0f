"""Where the layers of a UNet lie in the published layout of Stable Diffusion 1, 2 and XL, which counts the blocks of each side through."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from diffalign.models.backbones.places import Place

LAYERS = {
    "conv_in": "input_blocks.0.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "encoder_hid_proj": "encoder_hid_proj",  # of Kolors
}
_RESNET = {"conv1": "in_layers.2", "conv2": "out_layers.3", "time_emb_proj": "emb_layers.1", "conv_shortcut": "skip_connection"}
_UNET_LAYER = re.compile(r"(down|up|mid)_blocks?(?:\.(\d+))?\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)")
_UNET_BLOCKS = {"DownBlock2D", "CrossAttnDownBlock2D", "UpBlock2D", "CrossAttnUpBlock2D"}


def place(layer: str, config: Mapping[str, Any]) -> Place | None:
    """Return where a layer lies, None if no place is known for it; `config` is the UNet's."""
    if layer in LAYERS:
        return Place(LAYERS[layer])
    match, depth = _UNET_LAYER.fullmatch(layer), config["layers_per_block"]
    odd = {*config["down_block_types"], *config["up_block_types"]} - _UNET_BLOCKS
    if match is None or odd or not isinstance(depth, int):
        return None
    side, block, kind, index, inner = match[1], int(match[2] or 0), match[3], int(match[4]), match[5]
    first = block * (depth + 1)
    if kind == "downsamplers":
        return Place(f"input_blocks.{first + depth + 1}.0.op") if inner == "conv" else None
    if kind == "upsamplers":
        slot = 2 if "Attn" in config["up_block_types"][block] else 1
        return Place(f"output_blocks.{first + depth}.{slot}.{inner}") if inner == "conv" else None
    if kind == "resnets" and inner not in _RESNET:
        return None
    inner = _RESNET[inner] if kind == "resnets" else inner
    slot = int(kind == "attentions")
    if side == "mid":
        return Place(f"middle_block.{slot or 2 * index}.{inner}")
    return Place(f"{'input' if side == 'down' else 'output'}_blocks.{first + index + (side == 'down')}.{slot}.{inner}")
