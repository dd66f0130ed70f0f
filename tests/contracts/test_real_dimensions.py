"""The published sizes, without weights: parameter counts, adapters, and the place of every exported key, on the meta device."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from diffusers import (
    ChromaTransformer2DModel,
    CogView4Transformer2DModel,
    ErnieImageTransformer2DModel,
    Flux2Transformer2DModel,
    FluxTransformer2DModel,
    HiDreamImageTransformer2DModel,
    Krea2Transformer2DModel,
    Lumina2Transformer2DModel,
    OvisImageTransformer2DModel,
    PixArtTransformer2DModel,
    QwenImageTransformer2DModel,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
    ZImageTransformer2DModel,
)
from peft import get_peft_model_state_dict

from diffalign.infer.export.lora_file import Update, comfyui_tensors
from diffalign.models.adapters import add_lora, trainable
from diffalign.models.backbones.table import BACKBONES
from tests.layouts import comfyui_paths, published, to_diffusers

# SDXL's, which Playground v2.5 and the Turbo have as well.
XL = {
    "sample_size": 128,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "block_out_channels": [320, 640, 1280],
    "transformer_layers_per_block": [1, 2, 10],
    "attention_head_dim": [5, 10, 20],
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
# The denoisers' config.json on the hub (stable-diffusion-v1-5, stable-diffusion-xl-base-1.0, PixArt-XL-2-1024-MS,
# stable-diffusion-3-medium, FLUX.1-dev, Z-Image-Turbo, Qwen-Image, Chroma1-HD, Lumina-Image-2.0,
# CogView4-6B, ERNIE-Image, Kolors-diffusers, HiDream-I1-Dev), with what the classes default to left out.
CONFIGS: dict[str, tuple[str, Any, dict[str, Any]]] = {
    "SD 1.5": ("sd", UNet2DConditionModel, {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8}),
    "SDXL": ("sdxl", UNet2DConditionModel, XL),
    "Kolors": (
        "kolors",
        UNet2DConditionModel,
        {**XL, "encoder_hid_dim": 4096, "encoder_hid_dim_type": "text_proj", "projection_class_embeddings_input_dim": 5632},
    ),
    "PixArt-XL-2": (
        "pixart",
        PixArtTransformer2DModel,
        {"sample_size": 128, "num_layers": 28, "num_attention_heads": 16, "attention_head_dim": 72, "in_channels": 4, "out_channels": 8}
        | {"caption_channels": 4096, "cross_attention_dim": 1152},
    ),
    "SD3-medium": (
        "sd3",
        SD3Transformer2DModel,
        {"sample_size": 128, "patch_size": 2, "in_channels": 16, "out_channels": 16, "num_layers": 24, "num_attention_heads": 24}
        | {"attention_head_dim": 64, "joint_attention_dim": 4096, "caption_projection_dim": 1536, "pooled_projection_dim": 2048}
        | {"pos_embed_max_size": 192},
    ),
    "Flux-dev": (
        "flux",
        FluxTransformer2DModel,
        {"in_channels": 64, "num_layers": 19, "num_single_layers": 38, "num_attention_heads": 24, "attention_head_dim": 128}
        | {"joint_attention_dim": 4096, "pooled_projection_dim": 768, "guidance_embeds": True},
    ),
    "Z-Image": ("z_image", ZImageTransformer2DModel, {}),  # whose defaults are the published model's, as are the next two
    "Qwen-Image": ("qwen_image", QwenImageTransformer2DModel, {}),
    "Chroma1": ("chroma", ChromaTransformer2DModel, {}),
    "Lumina-Image-2.0": ("lumina2", Lumina2Transformer2DModel, {"cap_feat_dim": 2304}),
    "CogView4-6B": ("cogview4", CogView4Transformer2DModel, {"num_layers": 28, "num_attention_heads": 32, "attention_head_dim": 128}),
    "SANA-1.6B": ("sana", SanaTransformer2DModel, {}),  # whose defaults are the published model's
    "ERNIE-Image": (
        "ernie_image",
        ErnieImageTransformer2DModel,
        {"hidden_size": 4096, "num_attention_heads": 32, "num_layers": 36, "ffn_hidden_size": 12288, "text_in_dim": 3072},
    ),
    "HiDream-I1": (
        "hidream",
        HiDreamImageTransformer2DModel,
        {"patch_size": 2, "in_channels": 16, "out_channels": 16, "caption_channels": [4096, 4096], "axes_dims_rope": [64, 32, 32]}
        | {"max_resolution": [128, 128], "llama_layers": [*range(32), *[31] * 16]},
    ),
    "Ovis-Image-7B": ("ovis_image", OvisImageTransformer2DModel, {}),  # whose defaults are the published model's
    # Not compared with the hub: sizes that give what the cards say, for Krea 2 and FLUX.2 dev the classes' own.
    "FLUX.2-dev": ("flux2", Flux2Transformer2DModel, {}),
    "FLUX.2-klein-4B": (
        "flux2",
        Flux2Transformer2DModel,
        {"num_layers": 5, "num_single_layers": 20, "num_attention_heads": 24, "joint_attention_dim": 7680, "guidance_embeds": False},
    ),
    "Krea-2": ("krea2", Krea2Transformer2DModel, {}),
}
# SD 1.5: 860M UNet (its model card). SDXL: 2.6B (2307.01952, table 1). PixArt-alpha: 0.6B (2310.00426, table 1). SD3-medium: 2B
# (its card), and the fixed position table of 192 * 192 * 1536 numbers, which is no parameter. Flux-dev: 12B, Z-Image: 6B (their cards).
PARAMETERS = {"SD 1.5": 859_520_964, "SDXL": 2_567_463_684, "PixArt-XL-2": 611_349_152, "SD3-medium": 2_028_328_000}
PARAMETERS |= {"Flux-dev": 11_901_408_320, "Z-Image": 6_154_908_736}
# Kolors: 2.6B (its card). SDXL's UNet, with a projection of ChatGLM's 4096 numbers to 2048, and 2816 more numbers in the first layer
# behind the time ids: the pooled embedding has 4096 and not 1280.
PARAMETERS["Kolors"] = PARAMETERS["SDXL"] + (4096 + 1) * 2048 + (4096 - 1280) * 1280
# Qwen-Image: 20B (its card). Of width W = 3072, a block has two modulations (12 W^2 + 12 W), eight projections (8 W^2 + 8 W), two MLPs
# (16 W^2 + 10 W) and four norms of 128; around the 60 of them are the embedders of patches, of Qwen2.5-VL's 3584 numbers with their
# norm, and of the time, the last modulation and the last layer.
W = 3072
PARAMETERS["Qwen-Image"] = 60 * (36 * W**2 + 30 * W + 512) + (64 + 1) * W + (3584 + 1) * W + 3584 + (256 + W + 2) * W
PARAMETERS["Qwen-Image"] += 2 * (W + 1) * W + (W + 1) * 64
# Chroma1: 8.9B (its card). Flux's blocks without their modulations, and a network of five blocks of 5120 in place of all of those.
PARAMETERS["Chroma1"] = 19 * (24 * W**2 + 18 * W + 512) + 38 * (12 * W**2 + 8 * W + 256) + (64 + 1) * W + (4096 + 1) * W + (W + 1) * 64
PARAMETERS["Chroma1"] += (64 + 1) * 5120 + 5 * (2 * (5120 + 1) * 5120 + 5120) + (5120 + 1) * W
# Lumina-Image 2.0: 2.6B (2503.21758). Layers of width 2304 with 24 heads, 8 of which have keys and values, an MLP with a gate and 9216
# numbers, four norms, two of 96, and but for the two of the prompt a modulation of 1024 numbers.
LAYER = 2304 * (2 * 2304 + 2 * 768) + 2 * 96 + 3 * 2304 * 9216 + 4 * 2304
PARAMETERS["Lumina-Image-2.0"] = 30 * LAYER + 28 * (1024 + 1) * 4 * 2304 + (64 + 1) * 2304 + (256 + 1 + 1024 + 1) * 1024
PARAMETERS["Lumina-Image-2.0"] += 2304 + (2304 + 1) * 2304 + (1024 + 1) * 2304 + (2304 + 1) * 64
# CogView4: 6B (its card). Of width 4096, a block has a modulation of 512 numbers for both sides, an attention and an MLP that they share.
BLOCK = (512 + 1) * 12 * 4096 + 4 * (4096 + 1) * 4096 + 8 * 4096**2 + 5 * 4096
PARAMETERS["CogView4-6B"] = 28 * BLOCK + (64 + 1) * 4096 + (4096 + 1) * 4096 + (4096 + 1 + 512 + 1 + 1536 + 1 + 512 + 1) * 512
PARAMETERS["CogView4-6B"] += (512 + 1) * 2 * 4096 + (4096 + 1) * 64
# SANA: 1.6B (2410.10629). Of width 2240, a block has a linear attention without biases in its queries, an attention to the prompt, and an
# MLP of convolutions with 5600 numbers.
S = 2240
BLOCK = 8 * S**2 + 5 * S + 3 * 5600 * S + 22 * 5600 + 6 * S
PARAMETERS["SANA-1.6B"] = (
    20 * BLOCK + (32 + 1) * S + (256 + 1 + S + 1) * S + 6 * (S + 1) * S + (2304 + 1 + S + 1) * S + 3 * S + (S + 1) * 32
)
# FLUX.2 klein: 4B (its card), without biases. Of width 3072 again, a stream of a double block has an attention (4 W^2) and an MLP with a
# gate (9 W^2), a single block both in two layers (13 W^2); all blocks share three modulations (15 W^2).
PARAMETERS["FLUX.2-klein-4B"] = (
    5 * (26 * W**2 + 4 * 128) + 20 * (13 * W**2 + 2 * 128) + 15 * W**2 + (128 + 7680 + 256 + W + 128) * W + 2 * W**2
)
# FLUX.2 dev: 32B (its card). The same of width 6144 with more blocks, and an embedder of the guidance scale beside that of the time.
D = 6144
PARAMETERS["FLUX.2-dev"] = 8 * (26 * D**2 + 4 * 128) + 48 * (13 * D**2 + 2 * 128) + 15 * D**2
PARAMETERS["FLUX.2-dev"] += (128 + 15360 + 2 * (256 + D) + 128) * D + 2 * D**2
# ERNIE-Image: 8B (its card). Of width 4096, a block has an attention and an MLP with a gate and 12288 numbers, without biases, two norms
# of 128 and two of the width; all blocks share one modulation.
E = 4096
PARAMETERS["ERNIE-Image"] = 36 * (4 * E**2 + 3 * 12288 * E + 2 * 128 + 2 * E) + (128 + 1) * E + 3072 * E + 2 * (E + 1) * E
PARAMETERS["ERNIE-Image"] += 8 * (E + 1) * E + (E + 1) * 128
# HiDream-I1: 17B (its card). Of width 2560, a double block has a modulation (12 H^2 + 12 H), an attention with biases and norms of both
# sides, for the picture four experts with a gate and 6912 numbers, one that all share with 3584, and the gate that routes; for the prompt
# one such. A single block has half of it. The prompt's 4096 numbers of T5 and of Llama for each block have a projection each.
H = 2560
EXPERTS = 3 * H * (4 * 6912 + 3584) + 4 * H
BLOCK = 12 * (H + 1) * H + 8 * (H + 1) * H + 4 * H + EXPERTS + 3 * 6912 * H
PARAMETERS["HiDream-I1"] = 16 * BLOCK + 32 * (6 * (H + 1) * H + 4 * (H + 1) * H + 2 * H + EXPERTS) + 49 * 4096 * H
PARAMETERS["HiDream-I1"] += (64 + 1) * H + (256 + 1 + 2048 + 1 + 2 * (H + 1)) * H + (H + 1) * 64 + 2 * (H + 1) * H
# Ovis-Image: 7B (its card). Of width 3072 again: MLPs with a gate (12 W^2 + 9 W) in place of Flux's (8 W^2 + 5 W), and one encoder.
PARAMETERS["Ovis-Image-7B"] = 6 * (44 * W**2 + 38 * W + 4 * 128) + 27 * (19 * W**2 + 15 * W + 2 * 128)
PARAMETERS["Ovis-Image-7B"] += (64 + 1) * W + 2048 + (2048 + 1) * W + (256 + 1 + W + 1) * W + 2 * (W + 1) * W + (W + 1) * 64
# Krea 2, of width 6144, with 48 heads, 12 of which have keys and values, a gate, and an MLP with a gate and 16384 numbers; four blocks of
# width 2560 read the prompt.
K = 6144
BLOCK = 3 * K**2 + 2 * 1536 * K + 3 * 16384 * K + 2 * 128 + 8 * K
WORDS = 5 * 2560**2 + 3 * 6912 * 2560 + 2 * 128 + 2 * 2560
PARAMETERS["Krea-2"] = 28 * BLOCK + 4 * WORDS + (64 + 1) * K + (256 + 1 + K + 1) * K + 6 * (K + 1) * K + 2560 + (2560 + 1 + K + 1) * K
PARAMETERS["Krea-2"] += 12 + 3 * K + (K + 1) * 64
RANK = 8


@dataclass(frozen=True)
class Published:
    """A denoiser without numbers, for the one test that changes it, and what it had before."""

    name: str
    family: str
    network: Any
    parameters: int
    shapes: Mapping[str, torch.Size]  # of its state


@pytest.fixture(scope="module", params=CONFIGS)
def model(request: pytest.FixtureRequest) -> Published:
    """A denoiser in its published size, made once."""
    family, kind, config = CONFIGS[request.param]
    with torch.device("meta"):
        network = kind(**config)
    shapes = {key: value.shape for key, value in network.state_dict().items()}
    return Published(request.param, family, network, sum(parameter.numel() for parameter in network.parameters()), shapes)


def test_the_config_gives_the_published_number_of_parameters(model):
    assert model.parameters == PARAMETERS[model.name]


def test_the_published_layout_has_the_keys_and_shapes_that_diffusers_converts(model):
    layout = {key: torch.empty(shape, device="meta") for key, shape in published(model.family, model.network.config).items()}
    converted = to_diffusers(model.family, layout, model.network.config)
    assert {key: value.shape for key, value in converted.items()} == model.shapes


def attention_layers(name: str) -> dict[str, tuple[int, int]]:
    """Return {layer: (inputs, outputs)} that get an adapter, from how the models are built; a transformer block has two attentions."""
    ends = ("to_q", "to_k", "to_v", "to_out.0")
    joint = (*ends, "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")  # with the projections of the prompt's tokens
    if name == "SD3-medium":  # the last block reads the prompt's tokens, but gives none back
        found = {f"transformer_blocks.{i}.attn.{end}": (1536, 1536) for i in range(24) for end in joint}
        del found["transformer_blocks.23.attn.to_add_out"]
        return found
    if name == "PixArt-XL-2":
        blocks = [f"transformer_blocks.{i}.attn{j}" for i in range(28) for j in (1, 2)]
        return {f"{block}.{end}": (1152, 1152) for block in blocks for end in ends}
    if name == "Z-Image":
        blocks = [
            f"{part}.{i}.attention" for part, depth in (("layers", 30), ("noise_refiner", 2), ("context_refiner", 2)) for i in range(depth)
        ]
        return {f"{block}.{end}": (3840, 3840) for block in blocks for end in ends}
    if name == "Qwen-Image":
        return {f"transformer_blocks.{i}.attn.{end}": (W, W) for i in range(60) for end in joint}
    if name == "SANA-1.6B":
        return {f"transformer_blocks.{i}.attn{j}.{end}": (S, S) for i in range(20) for j in (1, 2) for end in ends}
    if name == "FLUX.2-klein-4B":
        found = {f"transformer_blocks.{i}.attn.{end}": (W, W) for i in range(5) for end in joint}
        return found | {f"single_transformer_blocks.{i}.attn.to_qkv_mlp_proj": (W, 9 * W) for i in range(20)}
    if name == "FLUX.2-dev":
        found = {f"transformer_blocks.{i}.attn.{end}": (D, D) for i in range(8) for end in joint}
        return found | {f"single_transformer_blocks.{i}.attn.to_qkv_mlp_proj": (D, 9 * D) for i in range(48)}
    if name == "Ovis-Image-7B":
        found = {f"transformer_blocks.{i}.attn.{end}": (W, W) for i in range(6) for end in joint}
        return found | {f"single_transformer_blocks.{i}.attn.{end}": (W, W) for i in range(27) for end in ends[:3]}
    if name == "HiDream-I1":
        streams = ("to_q", "to_k", "to_v", "to_out")
        found = {f"double_stream_blocks.{i}.block.attn1.{end}{side}": (H, H) for i in range(16) for end in streams for side in ("", "_t")}
        return found | {f"single_stream_blocks.{i}.block.attn1.{end}": (H, H) for i in range(32) for end in streams}
    if name == "ERNIE-Image":
        return {f"layers.{i}.self_attention.{end}": (E, E) for i in range(36) for end in ends}
    if name == "Krea-2":
        found = {f"transformer_blocks.{i}.attn.{end}": (K, 1536 if end in ("to_k", "to_v") else K) for i in range(28) for end in ends}
        words = [f"text_fusion.{part}_blocks.{i}.attn" for part in ("layerwise", "refiner") for i in range(2)]
        return found | {f"{block}.{end}": (2560, 2560) for block in words for end in ends}
    if name == "CogView4-6B":
        return {f"transformer_blocks.{i}.attn1.{end}": (4096, 4096) for i in range(28) for end in ends}
    if name == "Lumina-Image-2.0":
        blocks = [
            f"{part}.{i}.attn" for part, depth in (("layers", 26), ("noise_refiner", 2), ("context_refiner", 2)) for i in range(depth)
        ]
        return {f"{block}.{end}": (2304, 768 if end in ("to_k", "to_v") else 2304) for block in blocks for end in ends}
    if name in ("Flux-dev", "Chroma1"):  # a single block has both streams in one, and no output projection of its own
        found = {f"transformer_blocks.{i}.attn.{end}": (3072, 3072) for i in range(19) for end in joint}
        return found | {f"single_transformer_blocks.{i}.attn.{end}": (3072, 3072) for i in range(38) for end in ends[:3]}
    if name == "SD 1.5":  # levels of 320, 640, 1280 with one block in each transformer: two on the way down, three on the way up
        prompt, levels = 768, [(f"down_blocks.{i}", 320 * 2**i, 2, 1) for i in range(3)]
        levels += [(f"up_blocks.{3 - i}", 320 * 2**i, 3, 1) for i in range(3)] + [("mid_block", 1280, 1, 1)]
    else:  # levels of 640 and 1280 with two and ten blocks
        prompt, levels = 2048, [("down_blocks.1", 640, 2, 2), ("down_blocks.2", 1280, 2, 10), ("mid_block", 1280, 1, 10)]
        levels += [("up_blocks.0", 1280, 3, 10), ("up_blocks.1", 640, 3, 2)]
    found = {}
    for level, width, transformers, depth in levels:
        for block in (f"{level}.attentions.{i}.transformer_blocks.{j}" for i in range(transformers) for j in range(depth)):
            for number, end in ((number, end) for number in (1, 2) for end in ends):
                found[f"{block}.attn{number}.{end}"] = (prompt if number == 2 and end in ("to_k", "to_v") else width, width)
    return found


# By hand: SD 1.5 has 16 transformer blocks, SDXL 2*2 + 2*10 + 10 + 3*10 + 3*2 = 70, of two attentions with four projections each.
# SD3: q, k, v and out of the picture and of the prompt, 8 in each of 24 blocks but the prompt's out in the last: 191. Flux: those 8 in
# each of 19 double blocks, q, k and v in each of 38 single ones: 152 + 114 = 266.
LAYERS = {
    "SD 1.5": 16 * 8,
    "SDXL": 70 * 8,
    "Kolors": 70 * 8,
    "PixArt-XL-2": 28 * 8,
    "SD3-medium": 24 * 8 - 1,
    "Flux-dev": 19 * 8 + 38 * 3,
    "Z-Image": 34 * 4,
}
LAYERS |= {"Qwen-Image": 60 * 8, "Chroma1": LAYERS["Flux-dev"], "Lumina-Image-2.0": 30 * 4, "CogView4-6B": 28 * 4}
LAYERS |= {"SANA-1.6B": 20 * 8, "FLUX.2-klein-4B": 5 * 8 + 20, "Krea-2": 32 * 4}
LAYERS |= {"FLUX.2-dev": 8 * 8 + 48, "ERNIE-Image": 36 * 4, "HiDream-I1": 16 * 8 + 32 * 4}
# The same, but q, k and v of one stream are one module in SD3 and Flux (with out: 4 in a block, 1 in a single block, whose module also
# has the MLP) and in PixArt (qkv and out; then q, out, and k with v, of the prompt).
MODULES = {
    "SD 1.5": 16 * 8,
    "SDXL": 70 * 8,
    "Kolors": 70 * 8,
    "PixArt-XL-2": 28 * 5,
    "SD3-medium": 24 * 4 - 1,
    "Flux-dev": 19 * 4 + 38,
    "Z-Image": 34 * 2,
}
MODULES |= {"Qwen-Image": 60 * 8, "Chroma1": MODULES["Flux-dev"], "Lumina-Image-2.0": 30 * 2, "CogView4-6B": 28 * 4}
MODULES |= {"SANA-1.6B": 20 * 5, "FLUX.2-klein-4B": 5 * 4 + 20, "Krea-2": 32 * 4}
MODULES |= {"FLUX.2-dev": 8 * 4 + 48, "ERNIE-Image": 36 * 4, "HiDream-I1": 16 * 8 + 32 * 4}
# rank * (inputs + outputs) over the layers. SD 1.5 of rank 4 has 797,184, the number that diffusers' LoRA scripts report.
ADAPTED = {"SD 1.5": 2 * 797_184, "PixArt-XL-2": RANK * 224 * 2304, "SD3-medium": RANK * 191 * 3072, "Flux-dev": RANK * 266 * 6144}
ADAPTED |= {"Z-Image": RANK * 136 * 7680, "Qwen-Image": RANK * 480 * 2 * W, "Chroma1": RANK * 266 * 2 * W}
ADAPTED |= {"Lumina-Image-2.0": RANK * 30 * 2 * (2 * 2304 + 2304 + 768), "CogView4-6B": RANK * 112 * 2 * 4096}
ADAPTED |= {"SANA-1.6B": RANK * 160 * 2 * S, "FLUX.2-klein-4B": RANK * (40 * 2 * W + 20 * 10 * W)}
ADAPTED |= {"Krea-2": RANK * (28 * (2 * 2 * K + 2 * (K + 1536)) + 16 * 2 * 2560)}
ADAPTED |= {"FLUX.2-dev": RANK * (64 * 2 * D + 48 * 10 * D), "ERNIE-Image": RANK * 144 * 2 * E}
# Blocks of width 640: 10, of 1280: 60; six projections from and to the width, two from the prompt's 2048.
ADAPTED |= {"SDXL": RANK * sum(count * (6 * 2 * width + 2 * (2048 + width)) for width, count in ((640, 10), (1280, 60)))}
LAYERS["Ovis-Image-7B"], MODULES["Ovis-Image-7B"] = 6 * 8 + 27 * 3, 6 * 4 + 27
ADAPTED["Ovis-Image-7B"] = RANK * 129 * 2 * W
ADAPTED["HiDream-I1"] = RANK * 256 * 2 * H
ADAPTED["Kolors"] = ADAPTED["SDXL"]


def test_an_adapter_has_the_expected_keys_and_every_exported_key_a_module_of_the_published_layout(model):
    name, family, network = model.name, model.family, model.network
    with torch.device("meta"):
        add_lora(network, targets=BACKBONES[family].lora_targets, rank=RANK, alpha=16)
    layers = attention_layers(name)
    state = get_peft_model_state_dict(network)
    assert set(state) == {f"{layer}.lora_{side}.weight" for layer in layers for side in "AB"}
    assert len(layers) == LAYERS[name]
    assert sum(parameter.numel() for parameter in trainable(network)) == ADAPTED[name]
    for layer, (inputs, outputs) in layers.items():
        assert state[f"{layer}.lora_A.weight"].shape == (RANK, inputs)
        assert state[f"{layer}.lora_B.weight"].shape == (outputs, RANK)

    updates = {layer: Update(state[f"{layer}.lora_A.weight"], state[f"{layer}.lora_B.weight"], 16 / RANK) for layer in layers}
    tensors = comfyui_tensors(family, updates, network.config)
    paths, layout = comfyui_paths(family, network.config), published(family, network.config)
    exported = [key.removesuffix(".alpha") for key in tensors if key.endswith(".alpha")]
    assert len(exported) == MODULES[name]
    assert len(tensors) == 3 * len(exported)
    assert len({paths[key] for key in exported}) == len(exported)
    parts = defaultdict(list)
    for key, value in tensors.items():
        parts[key.rpartition(".lora_")[0]].append(value)
    for key in exported:
        down, up = parts[key]
        assert (len(up), down.shape[1]) == layout[f"{paths[key]}.weight"]
        assert tensors[f"{key}.alpha"] / len(down) == 2.0
