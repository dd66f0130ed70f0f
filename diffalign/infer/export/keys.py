"""Where a layer of a diffusers denoiser lies in the checkpoint layout that its model was published in, and its name in LoRA files.

The layouts are those that diffusers' single-file converters read, and for PixArt those of its release. ComfyUI looks for the LoRA of a
weight `diffusion_model.X.weight` under two names: `diffusion_model.X`, and `lora_unet_X` with underscores for dots (comfy/lora.py).
kohya's scripts read the second name alone. X is there diffusers' own path for Stable Diffusion 1 and 2, and the published one for later
models.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from diffalign.core.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Place:
    """Which rows of which module of the published layout hold one layer of the denoiser."""

    module: str
    part: int = 0  # which of the parts that lie on top of each other in the module
    shares: tuple[int, ...] = (1,)  # rows of each part, in any unit
    swapped: bool = False  # the two halves of its rows stand in the other order


def _fused(module: str, *layers: str, shares: tuple[int, ...] = ()) -> dict[str, Place]:
    return {layer: Place(module, part, shares or (1,) * len(layers)) for part, layer in enumerate(layers)}


def _plain(**modules: str) -> dict[str, Place]:
    """Return places of modules that are a layer of their own; a layer's dots are written as two underscores."""
    return {layer.replace("__", "."): Place(module) for layer, module in modules.items()}


def _embedder(layer: str, module: str) -> dict[str, Place]:
    """Return the places of a two-layer embedding: `mlp.0` and `mlp.2` there."""
    return {f"{layer}.linear_{number}": Place(f"{module}.{2 * number - 2}") for number in (1, 2)}


def _feed_forward(layer: str, first: str, second: str) -> dict[str, Place]:
    return {f"{layer}.net.0.proj": Place(first), f"{layer}.net.2": Place(second)}


_QKV = ("to_q", "to_k", "to_v")
# What a denoiser calls its blocks, what they are called in the published layout, and the layers of one.
Blocks = dict[str, tuple[str, dict[str, Place]]]
BLOCKS: dict[str, Blocks] = {
    "pixart": {
        "transformer_blocks": (
            "blocks",
            {
                **_fused("attn.qkv", *(f"attn1.{name}" for name in _QKV)),
                **_fused("cross_attn.kv_linear", "attn2.to_k", "attn2.to_v"),
                **_plain(attn1__to_out__0="attn.proj", attn2__to_q="cross_attn.q_linear", attn2__to_out__0="cross_attn.proj"),
                **_feed_forward("ff", "mlp.fc1", "mlp.fc2"),
            },
        )
    },
    "sd3": {
        "transformer_blocks": (
            "joint_blocks",
            {
                **_fused("x_block.attn.qkv", *(f"attn.{name}" for name in _QKV)),
                **_fused("x_block.attn2.qkv", *(f"attn2.{name}" for name in _QKV)),
                **_fused("context_block.attn.qkv", "attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
                **_plain(attn__to_out__0="x_block.attn.proj", attn2__to_out__0="x_block.attn2.proj"),
                **_plain(attn__to_add_out="context_block.attn.proj"),
                **_plain(norm1__linear="x_block.adaLN_modulation.1", norm1_context__linear="context_block.adaLN_modulation.1"),
                **_feed_forward("ff", "x_block.mlp.fc1", "x_block.mlp.fc2"),
                **_feed_forward("ff_context", "context_block.mlp.fc1", "context_block.mlp.fc2"),
            },
        )
    },
    "flux": {
        "transformer_blocks": (
            "double_blocks",
            {
                **_fused("img_attn.qkv", *(f"attn.{name}" for name in _QKV)),
                **_fused("txt_attn.qkv", "attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
                **_plain(attn__to_out__0="img_attn.proj", attn__to_add_out="txt_attn.proj"),
                **_plain(norm1__linear="img_mod.lin", norm1_context__linear="txt_mod.lin"),
                **_feed_forward("ff", "img_mlp.0", "img_mlp.2"),
                **_feed_forward("ff_context", "txt_mlp.0", "txt_mlp.2"),
            },
        ),
        "single_transformer_blocks": (
            "single_blocks",
            {
                **_fused("linear1", *(f"attn.{name}" for name in _QKV), "proj_mlp", shares=(1, 1, 1, 4)),
                **_plain(proj_out="linear2", norm__linear="modulation.lin"),
            },
        ),
    },
}
_FINAL = {"norm_out.linear": Place("final_layer.adaLN_modulation.1", swapped=True), "proj_out": Place("final_layer.linear")}
_CLOCK = "time_text_embed.timestep_embedder"
_Z_LAYER = {
    **_fused("attention.qkv", *(f"attention.{name}" for name in _QKV)),
    **_plain(attention__to_out__0="attention.out", adaLN_modulation__0="adaLN_modulation.0"),
    **{name: Place(name) for name in ("feed_forward.w1", "feed_forward.w2", "feed_forward.w3")},
}
BLOCKS["z_image"] = {name: (name, _Z_LAYER) for name in ("layers", "noise_refiner", "context_refiner")}
OUTSIDE: dict[str, dict[str, Place]] = {
    "pixart": {
        **_plain(pos_embed__proj="x_embedder.proj", proj_out="final_layer.linear", adaln_single__linear="t_block.1"),
        **_plain(caption_projection__linear_1="y_embedder.y_proj.fc1", caption_projection__linear_2="y_embedder.y_proj.fc2"),
        **_embedder("adaln_single.emb.timestep_embedder", "t_embedder.mlp"),
        **_embedder("adaln_single.emb.resolution_embedder", "csize_embedder.mlp"),
        **_embedder("adaln_single.emb.aspect_ratio_embedder", "ar_embedder.mlp"),
    },
    "sd3": {
        **_FINAL,
        **_plain(pos_embed__proj="x_embedder.proj", context_embedder="context_embedder"),
        **_embedder(_CLOCK, "t_embedder.mlp"),
        **_embedder("time_text_embed.text_embedder", "y_embedder.mlp"),
    },
    "flux": {
        **_FINAL,
        **_plain(x_embedder="img_in", context_embedder="txt_in"),
        **{
            f"{layer}.linear_{number}": Place(f"{module}.{name}_layer")
            for layer, module in (
                (_CLOCK, "time_in"),
                ("time_text_embed.text_embedder", "vector_in"),
                ("time_text_embed.guidance_embedder", "guidance_in"),
            )
            for number, name in ((1, "in"), (2, "out"))
        },
    },
}
OUTSIDE["z_image"] = {
    "all_x_embedder.2-1": Place("x_embedder"),
    "all_final_layer.2-1.linear": Place("final_layer.linear"),
    **{name: Place(name) for name in ("t_embedder.mlp.0", "t_embedder.mlp.2", "cap_embedder.1")},
    "all_final_layer.2-1.adaLN_modulation.1": Place("final_layer.adaLN_modulation.1"),
}
_UNET = {
    "conv_in": "input_blocks.0.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}
_RESNET = {"conv1": "in_layers.2", "conv2": "out_layers.3", "time_emb_proj": "emb_layers.1", "conv_shortcut": "skip_connection"}
_UNET_LAYER = re.compile(r"(down|up|mid)_blocks?(?:\.(\d+))?\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)")
_UNET_BLOCKS = {"DownBlock2D", "CrossAttnDownBlock2D", "UpBlock2D", "CrossAttnUpBlock2D"}


def place(family: str, layer: str, config: Mapping[str, Any]) -> Place:
    """Return where `layer` lies in the published layout of a family; `config` is the denoiser's.

    Raises ConfigError that names the layer if no place is known for it.
    """
    published = _unet_place(layer, config) if family in ("sd", "sdxl") else _transformer_place(family, layer, config)
    if published is None:
        raise ConfigError(
            f"`{layer}`: no place is known for this layer in the published layout of {family}, so there is no ComfyUI file of it; "
            "leave `comfyui` out of --formats, or train with other --lora_layers"
        )
    return published


def file_key(family: str, layer: str, published: Place) -> tuple[str, str, str]:
    """Return the key of a place in a LoRA file up to its last part, and the names of its down and its up matrix."""
    if family == "pixart":  # no script of kohya's trains it
        return f"diffusion_model.{published.module}", "lora_A.weight", "lora_B.weight"
    path = layer if family == "sd" else published.module
    return f"lora_unet_{path.replace('.', '_')}", "lora_down.weight", "lora_up.weight"


def _transformer_place(family: str, layer: str, config: Mapping[str, Any]) -> Place | None:
    blocks, _, rest = layer.partition(".")
    number, _, inner = rest.partition(".")
    if blocks not in BLOCKS.get(family, {}):
        return OUTSIDE.get(family, {}).get(layer)
    published, layers = BLOCKS[family][blocks]
    target = layers.get(inner)
    if target is None:
        return None
    # The last block of SD3 only reads the prompt's tokens, and diffusers' norm for that has scale and shift in the other order.
    last = family == "sd3" and inner == "norm1_context.linear" and int(number) == config["num_layers"] - 1
    return Place(f"{published}.{number}.{target.module}", target.part, target.shares, swapped=last)


def _unet_place(layer: str, config: Mapping[str, Any]) -> Place | None:
    """Return a UNet's place: there the blocks of each side are counted through, resnets, attentions and resamplers within them."""
    if layer in _UNET:
        return Place(_UNET[layer])
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
