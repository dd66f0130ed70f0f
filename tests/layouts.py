"""The checkpoint layouts that models were published in, by rule: every key with its shape, from the config of the diffusers network.

Sources: latent-diffusion's UNetModel, sd3-ref's MMDiT, BFL's Flux and PixArt's PixArtMS, whose module names these are. That the rules
are right is itself tested: diffusers' single-file converters turn each into exactly the keys and shapes of the diffusers network.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from diffusers.loaders.single_file_utils import (
    LDM_UNET_KEY,
    convert_chroma_transformer_checkpoint_to_diffusers,
    convert_flux2_transformer_checkpoint_to_diffusers,
    convert_flux_transformer_checkpoint_to_diffusers,
    convert_krea2_transformer_checkpoint_to_diffusers,
    convert_ldm_unet_checkpoint,
    convert_lumina2_to_diffusers,
    convert_sana_transformer_to_diffusers,
    convert_sd3_transformer_checkpoint_to_diffusers,
    convert_z_image_transformer_checkpoint_to_diffusers,
)
from torch import Tensor

from tests.flow_layouts import (
    Shapes,
    affine,
    chroma,
    cogview4,
    ernie_image,
    flux2,
    hidream,
    krea2,
    lumina2,
    mlp,
    ovis_image,
    qwen_image,
    sana,
    single,
    stream,
)


def published(family: str, config: Mapping[str, Any]) -> Shapes:
    """Return every key and shape of the published checkpoint of a denoiser."""
    return LAYOUTS[family](config)


def resnet(key: str, before: int, after: int, embedded: int) -> Shapes:
    skip = affine(f"{key}.skip_connection", after, before, 1, 1) if before != after else {}
    inner = affine(f"{key}.in_layers.0", before) | affine(f"{key}.in_layers.2", after, before, 3, 3)
    outer = affine(f"{key}.out_layers.0", after) | affine(f"{key}.out_layers.3", after, after, 3, 3)
    return inner | affine(f"{key}.emb_layers.1", after, embedded) | outer | skip


def spatial_transformer(key: str, width: int, count: int, config: Mapping[str, Any]) -> Shapes:
    tail = () if config["use_linear_projection"] else (1, 1)
    found = affine(f"{key}.norm", width) | affine(f"{key}.proj_in", width, width, *tail) | affine(f"{key}.proj_out", width, width, *tail)
    for inner in (f"{key}.transformer_blocks.{i}" for i in range(count)):
        for name, context in (("attn1", width), ("attn2", config["cross_attention_dim"])):
            found |= affine(f"{inner}.{name}.to_q", width, width, bias=False) | affine(f"{inner}.{name}.to_out.0", width, width)
            for projection in ("to_k", "to_v"):
                found |= affine(f"{inner}.{name}.{projection}", width, context, bias=False)
        found |= affine(f"{inner}.ff.net.0.proj", 8 * width, width) | affine(f"{inner}.ff.net.2", width, 4 * width)
        found |= {k: v for n in (1, 2, 3) for k, v in affine(f"{inner}.norm{n}", width).items()}
    return found


def unet(config: Mapping[str, Any]) -> Shapes:
    """The blocks of each side are counted through; a block is a resnet, then a transformer if it has one, or a resampler."""
    widths, depth, embedded = config["block_out_channels"], config["layers_per_block"], 4 * config["block_out_channels"][0]
    layers = config["transformer_layers_per_block"]
    layers = [layers] * len(widths) if isinstance(layers, int) else list(layers)
    attentive = ["Attn" in kind for kind in config["down_block_types"]]

    def block(key: str, level: int, before: int) -> Shapes:
        found = resnet(f"{key}.0", before, widths[level], embedded)
        return found | (spatial_transformer(f"{key}.1", widths[level], layers[level], config) if attentive[level] else {})

    found = mlp("time_embed", (0, 2), embedded, widths[0], embedded) | affine("input_blocks.0.0", widths[0], config["in_channels"], 3, 3)
    if config["addition_embed_type"] == "text_time":
        found |= mlp("label_emb.0", (0, 2), embedded, config["projection_class_embeddings_input_dim"], embedded)
    if config["encoder_hid_dim_type"] == "text_proj":
        found |= affine("encoder_hid_proj", config["cross_attention_dim"], config["encoder_hid_dim"])
    skips, last = [widths[0]], len(widths) - 1
    for level, width in enumerate(widths):
        for _ in range(depth):
            found |= block(f"input_blocks.{len(skips)}", level, skips[-1])
            skips.append(width)
        if level < last:
            found |= affine(f"input_blocks.{len(skips)}.0.op", width, width, 3, 3)
            skips.append(width)
    width, number = widths[-1], 0
    found |= resnet("middle_block.0", width, width, embedded) | spatial_transformer("middle_block.1", width, layers[-1], config)
    found |= resnet("middle_block.2", width, width, embedded)
    for level in reversed(range(len(widths))):
        for position in range(depth + 1):
            found |= block(f"output_blocks.{number}", level, width + skips.pop())
            width = widths[level]
            if position == depth and level:
                found |= affine(f"output_blocks.{number}.{1 + attentive[level]}.conv", width, width, 3, 3)
            number += 1
    return found | affine("out.0", width) | affine("out.2", config["out_channels"], width, 3, 3)


def mmdit(config: Mapping[str, Any]) -> Shapes:
    width = config["num_attention_heads"] * config["attention_head_dim"]
    patch, channels, last = config["patch_size"], config["in_channels"], config["num_layers"] - 1

    def attention(key: str, reads: bool = False) -> Shapes:
        norms = {f"{key}.ln_{name}.weight": (config["attention_head_dim"],) for name in "qk"} if config["qk_norm"] else {}
        return affine(f"{key}.qkv", 3 * width, width) | norms | ({} if reads else affine(f"{key}.proj", width, width))

    found = affine("x_embedder.proj", width, channels, patch, patch) | affine("context_embedder", width, config["joint_attention_dim"])
    found |= mlp("t_embedder.mlp", (0, 2), width, 256, width) | mlp("y_embedder.mlp", (0, 2), width, config["pooled_projection_dim"], width)
    found |= {"pos_embed": (1, config["pos_embed_max_size"] ** 2, width)}
    for number in range(config["num_layers"]):
        image, context = f"joint_blocks.{number}.x_block", f"joint_blocks.{number}.context_block"
        dual = number in config["dual_attention_layers"]
        found |= attention(f"{image}.attn") | (attention(f"{image}.attn2") if dual else {})
        found |= affine(f"{image}.adaLN_modulation.1", (9 if dual else 6) * width, width)
        found |= mlp(f"{image}.mlp", ("fc1", "fc2"), 4 * width, width, width) | attention(f"{context}.attn", reads=number == last)
        found |= affine(f"{context}.adaLN_modulation.1", (2 if number == last else 6) * width, width)
        found |= mlp(f"{context}.mlp", ("fc1", "fc2"), 4 * width, width, width) if number < last else {}
    found |= affine("final_layer.linear", patch**2 * config["out_channels"], width)
    return found | affine("final_layer.adaLN_modulation.1", 2 * width, width)


def flux(config: Mapping[str, Any]) -> Shapes:
    width, head = config["num_attention_heads"] * config["attention_head_dim"], config["attention_head_dim"]
    found = affine("img_in", width, config["in_channels"]) | affine("txt_in", width, config["joint_attention_dim"])
    embedded = {"time_in": 256, "vector_in": config["pooled_projection_dim"], **({"guidance_in": 256} if config["guidance_embeds"] else {})}
    for name, size in embedded.items():
        found |= mlp(name, ("in_layer", "out_layer"), width, size, width)
    for number in range(config["num_layers"]):
        for key in (f"double_blocks.{number}.img", f"double_blocks.{number}.txt"):
            found |= stream(key, width, head) | affine(f"{key}_mod.lin", 6 * width, width)
    for key in (f"single_blocks.{number}" for number in range(config["num_single_layers"])):
        found |= single(key, width, head) | affine(f"{key}.modulation.lin", 3 * width, width)
    return found | affine("final_layer.linear", config["in_channels"], width) | affine("final_layer.adaLN_modulation.1", 2 * width, width)


def pixart(config: Mapping[str, Any]) -> Shapes:
    width, patch = config["num_attention_heads"] * config["attention_head_dim"], config["patch_size"]
    found = affine("x_embedder.proj", width, config["in_channels"], patch, patch) | mlp("t_embedder.mlp", (0, 2), width, 256, width)
    found |= affine("t_block.1", 6 * width, width) | mlp("y_embedder.y_proj", ("fc1", "fc2"), width, config["caption_channels"], width)
    if config["use_additional_conditions"] or (config["use_additional_conditions"] is None and config["sample_size"] == 128):
        for name in ("csize_embedder", "ar_embedder"):
            found |= mlp(f"{name}.mlp", (0, 2), width // 3, 256, width // 3)
    for key in (f"blocks.{number}" for number in range(config["num_layers"])):
        found |= affine(f"{key}.attn.qkv", 3 * width, width) | affine(f"{key}.attn.proj", width, width)
        found |= affine(f"{key}.cross_attn.q_linear", width, width) | affine(f"{key}.cross_attn.kv_linear", 2 * width, width)
        found |= affine(f"{key}.cross_attn.proj", width, width) | mlp(f"{key}.mlp", ("fc1", "fc2"), 4 * width, width, width)
        found |= {f"{key}.scale_shift_table": (6, width)}
    final = affine("final_layer.linear", patch**2 * config["out_channels"], width)
    return found | final | {"final_layer.scale_shift_table": (2, width)}


def z_image(config: Mapping[str, Any]) -> Shapes:
    width, told, head = config["dim"], min(config["dim"], 256), config["dim"] // config["n_heads"]
    inner, patch = int(width / 3 * 8), config["all_patch_size"][0] ** 2 * config["in_channels"]
    found = affine("x_embedder", width, patch) | affine("final_layer.linear", patch, width)
    found |= affine("final_layer.adaLN_modulation.1", width, told) | mlp("t_embedder.mlp", (0, 2), 1024, 256, told)
    found |= {"cap_embedder.0.weight": (config["cap_feat_dim"],)} | affine("cap_embedder.1", width, config["cap_feat_dim"])
    found |= {"x_pad_token": (1, width), "cap_pad_token": (1, width)}
    depths = {"layers": config["n_layers"], "noise_refiner": config["n_refiner_layers"], "context_refiner": config["n_refiner_layers"]}
    for name, key in ((name, f"{name}.{number}") for name, depth in depths.items() for number in range(depth)):
        found |= affine(f"{key}.attention.qkv", 3 * width, width, bias=False) | affine(f"{key}.attention.out", width, width, bias=False)
        found |= {f"{key}.attention.{side}_norm.weight": (head,) for side in "qk"}
        found |= {f"{key}.feed_forward.{side}.weight": (inner, width) for side in ("w1", "w3")}
        found |= {f"{key}.feed_forward.w2.weight": (width, inner)}
        found |= {f"{key}.{norm}{number}.weight": (width,) for norm in ("attention_norm", "ffn_norm") for number in (1, 2)}
        found |= affine(f"{key}.adaLN_modulation.0", 4 * width, told) if name != "context_refiner" else {}
    return found


# The config of a Flux of its true width, the only one at which diffusers' converters split what is fused, with a block of each kind.
FLUX = {
    "num_attention_heads": 24,
    "attention_head_dim": 128,
    "num_layers": 1,
    "num_single_layers": 1,
    "in_channels": 64,
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 768,
    "guidance_embeds": True,
}
LAYOUTS = {"sd": unet, "kolors": unet, "sdxl": unet, "sd3": mmdit, "flux": flux, "pixart": pixart, "z_image": z_image}
LAYOUTS |= {"qwen_image": qwen_image, "chroma": chroma, "lumina2": lumina2, "cogview4": cogview4}
LAYOUTS |= {"ovis_image": ovis_image, "hidream": hidream, "flux2": flux2, "sana": sana, "krea2": krea2, "ernie_image": ernie_image}
UNETS = ("sd", "sdxl", "kolors")
AS_DIFFUSERS = ("qwen_image", "cogview4", "ernie_image", "hidream")  # published in diffusers' own layout


def to_diffusers(family: str, checkpoint: Mapping[str, Tensor], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return a published checkpoint as diffusers' own converters make it; for PixArt, which has none, as its release's tool does."""
    if family in UNETS:
        # The converter does not know the projection of Kolors, which was published in diffusers' own layout.
        own = {key: value for key, value in checkpoint.items() if key.startswith("encoder_hid_proj.")}
        return own | convert_ldm_unet_checkpoint({f"{LDM_UNET_KEY}{key}": value for key, value in checkpoint.items()}, dict(config))
    if family == "pixart":
        return dict(_from_pixart(checkpoint))
    if family == "ovis_image":
        return dict(_from_ovis_image(checkpoint))
    if family in AS_DIFFUSERS:
        return dict(checkpoint)
    convert = {
        "sd3": convert_sd3_transformer_checkpoint_to_diffusers,
        "flux": convert_flux_transformer_checkpoint_to_diffusers,
        "z_image": convert_z_image_transformer_checkpoint_to_diffusers,
        "chroma": convert_chroma_transformer_checkpoint_to_diffusers,
        "lumina2": convert_lumina2_to_diffusers,
        "flux2": convert_flux2_transformer_checkpoint_to_diffusers,
        "sana": convert_sana_transformer_to_diffusers,
        "krea2": convert_krea2_transformer_checkpoint_to_diffusers,
    }[family]
    rest = dict(checkpoint)
    found = convert(rest)
    assert not rest, f"keys that the converter does not know: {sorted(rest)[:3]}"
    return found


def _from_ovis_image(checkpoint: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Yield the layers of Ovis-Image, whose release has module names of its own (`ovis_image/model/layers.py`)."""
    outside = {"img_in": "x_embedder", "semantic_txt_in": "context_embedder", "semantic_txt_norm": "context_embedder_norm"}
    outside |= {"time_in.in_layer": "timestep_embedder.linear_1", "time_in.out_layer": "timestep_embedder.linear_2"}
    outside |= {"final_layer.linear": "proj_out", "final_layer.adaLN_modulation.1": "norm_out.linear"}
    sides = {"img": ("norm1", ("to_q", "to_k", "to_v"), "to_out.0", ("norm_q", "norm_k"), "ff")}
    sides["txt"] = "norm1_context", ("add_q_proj", "add_k_proj", "add_v_proj"), "to_add_out", ("norm_added_q", "norm_added_k"), "ff_context"
    for key, value in checkpoint.items():
        module, end = key.rsplit(".", 1)
        if module in outside:
            yield f"{outside[module]}.{end}", torch.cat(value.chunk(2)[::-1]) if "adaLN" in module else value
            continue
        kind, number, inner = module.split(".", 2)
        block = f"{'single_' if kind == 'single_blocks' else ''}transformer_blocks.{number}"
        if kind == "single_blocks":
            width, names = checkpoint["img_in.weight"].shape[0], ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")
            found = {
                "linear2": "proj_out",
                "modulation.lin": "norm.linear",
                "norm.query_norm": "attn.norm_q",
                "norm.key_norm": "attn.norm_k",
            }
            parts = value.split([width, width, width, 8 * width]) if inner == "linear1" else (value,)
            yield from (
                (f"{block}.{name}.{end}", part) for name, part in zip(names if len(parts) > 1 else [found[inner]], parts, strict=True)
            )
            continue
        side, layer = inner[:3], inner[4:]
        norm, qkv, out, norms, feed = sides[side]
        if layer == "attn.qkv":
            yield from ((f"{block}.attn.{name}.{end}", part) for name, part in zip(qkv, value.chunk(3), strict=True))
        elif layer == "mlp.up_proj":
            yield f"{block}.{feed}.net.0.proj.{end}", torch.cat([value, checkpoint[f"{kind}.{number}.{side}_mlp.gate_proj.{end}"]])
        elif layer != "mlp.gate_proj":
            names = {"mod.lin": f"{norm}.linear", "attn.proj": f"attn.{out}", "mlp.down_proj": f"{feed}.net.2"}
            names |= {"attn.norm.query_norm": f"attn.{norms[0]}", "attn.norm.key_norm": f"attn.{norms[1]}"}
            yield f"{block}.{names[layer]}.{end}", value


def _from_pixart(checkpoint: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    names = {
        "x_embedder.": "pos_embed.",
        "t_embedder.mlp.0": "adaln_single.emb.timestep_embedder.linear_1",
        "t_embedder.mlp.2": "adaln_single.emb.timestep_embedder.linear_2",
        "csize_embedder.mlp.0": "adaln_single.emb.resolution_embedder.linear_1",
        "csize_embedder.mlp.2": "adaln_single.emb.resolution_embedder.linear_2",
        "ar_embedder.mlp.0": "adaln_single.emb.aspect_ratio_embedder.linear_1",
        "ar_embedder.mlp.2": "adaln_single.emb.aspect_ratio_embedder.linear_2",
        "t_block.1": "adaln_single.linear",
        "y_embedder.y_proj.fc": "caption_projection.linear_",
        "final_layer.linear": "proj_out",
        "final_layer.scale_shift_table": "scale_shift_table",
        "blocks.": "transformer_blocks.",
    }
    within = {
        ".cross_attn.q_linear.": ".attn2.to_q.",
        ".cross_attn.proj.": ".attn2.to_out.0.",
        ".attn.proj.": ".attn1.to_out.0.",
        ".mlp.fc1.": ".ff.net.0.proj.",
        ".mlp.fc2.": ".ff.net.2.",
    }
    fused = {".cross_attn.kv_linear.": (".attn2.to_k.", ".attn2.to_v."), ".attn.qkv.": tuple(f".attn1.to_{name}." for name in "qkv")}
    for key, value in checkpoint.items():
        start = next(prefix for prefix in names if key.startswith(prefix))
        name = names[start] + key.removeprefix(start)
        for old, new in within.items():
            name = name.replace(old, new) if start == "blocks." else name
        parts = next(((old, new) for old, new in fused.items() if old in name), None)
        if parts is None:
            yield name, value
        else:
            yield from ((name.replace(parts[0], part), chunk) for part, chunk in zip(parts[1], value.chunk(len(parts[1])), strict=True))


def random_checkpoint(family: str, config: Mapping[str, Any], seed: int = 0) -> dict[str, Tensor]:
    """Return a published checkpoint of random numbers."""
    generator = torch.Generator().manual_seed(seed)
    return {key: 0.1 * torch.randn(shape, generator=generator) for key, shape in published(family, config).items()}


def merged_by_comfyui(checkpoint: dict[str, Tensor], tensors: dict[str, Tensor], paths: dict[str, str]) -> dict[str, Tensor]:
    """Return W + alpha / rank * up @ down for every module of a file; `paths` gives a key's module, as ComfyUI's table does."""
    result = dict(checkpoint)
    for name, alpha in tensors.items():
        if not name.endswith(".alpha"):
            continue
        key = name.removesuffix(".alpha")
        native = f"{key}.lora_A.weight" in tensors
        down, up = (tensors[f"{key}.{end}.weight"] for end in (("lora_A", "lora_B") if native else ("lora_down", "lora_up")))
        weight = checkpoint[f"{paths[key]}.weight"]
        change = (up.flatten(1) @ down.flatten(1)).reshape(weight.shape)
        result[f"{paths[key]}.weight"] = weight + alpha.item() / len(down) * change
    return result


def comfyui_paths(family: str, config: dict[str, Any]) -> dict[str, str]:
    """Return the module of every key that ComfyUI knows for a model: its own names, and for UNets those of diffusers."""
    modules = [key.removesuffix(".weight") for key in published(family, config) if key.endswith(".weight")]
    paths = {f"lora_unet_{module.replace('.', '_')}": module for module in modules}
    paths |= {f"diffusion_model.{module}": module for module in modules}
    if family in UNETS:
        named = to_diffusers(family, {key: key for key in published(family, config)}, config)  # its own words as values
        ends = {name.removesuffix(".weight"): key.removesuffix(".weight") for name, key in named.items() if name.endswith(".weight")}
        paths |= {f"lora_unet_{name.replace('.', '_')}": module for name, module in ends.items()}
    return paths
