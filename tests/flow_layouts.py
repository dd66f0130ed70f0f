"""The published layouts of later flow transformers, by rule, as in `tests.layouts`.

Sources: Chroma1's and Lumina-Image-2.0's checkpoints by diffusers' single-file converters, which know no other widths than theirs;
those of FLUX.2, SANA and Krea 2 by converters that know any width. Qwen-Image, CogView4 and ERNIE-Image were published in diffusers'
own layout.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Shapes = dict[str, tuple[int, ...]]


def affine(key: str, *weight: int, bias: bool = True) -> Shapes:
    """Return the weight of a layer and its bias."""
    return {f"{key}.weight": weight, **({f"{key}.bias": weight[:1]} if bias else {})}


def mlp(key: str, names: tuple[object, object], wide: int, narrow: int, out: int) -> Shapes:
    return affine(f"{key}.{names[0]}", wide, narrow) | affine(f"{key}.{names[1]}", out, wide)


def stream(key: str, width: int, head: int) -> Shapes:
    """Return a stream of a double block of Flux, without the modulation."""
    layers = affine(f"{key}_attn.qkv", 3 * width, width) | affine(f"{key}_attn.proj", width, width)
    norms = {f"{key}_attn.norm.{name}_norm.scale": (head,) for name in ("query", "key")}
    return layers | norms | mlp(f"{key}_mlp", (0, 2), 4 * width, width, width)


def single(key: str, width: int, head: int) -> Shapes:
    """Return a single block of Flux, without the modulation."""
    norms = {f"{key}.norm.{name}_norm.scale": (head,) for name in ("query", "key")}
    return affine(f"{key}.linear1", 7 * width, width) | affine(f"{key}.linear2", width, 5 * width) | norms


def chroma(config: Mapping[str, Any]) -> Shapes:
    head, hidden = config["attention_head_dim"], config["approximator_hidden_dim"]
    width, key = config["num_attention_heads"] * head, "distilled_guidance_layer"
    found = affine("img_in", width, config["in_channels"]) | affine("txt_in", width, config["joint_attention_dim"])
    found |= affine(f"{key}.in_proj", hidden, config["approximator_num_channels"]) | affine(f"{key}.out_proj", width, hidden)
    for number in range(config["approximator_layers"]):
        found |= mlp(f"{key}.layers.{number}", ("in_layer", "out_layer"), hidden, hidden, hidden) | {
            f"{key}.norms.{number}.scale": (hidden,)
        }
    for number in range(config["num_layers"]):
        found |= stream(f"double_blocks.{number}.img", width, head) | stream(f"double_blocks.{number}.txt", width, head)
    for number in range(config["num_single_layers"]):
        found |= single(f"single_blocks.{number}", width, head)
    return found | affine("final_layer.linear", config["in_channels"], width)


def lumina2(config: Mapping[str, Any]) -> Shapes:
    width, heads, few = config["hidden_size"], config["num_attention_heads"], config["num_kv_heads"]
    head, told, patch = width // heads, min(width, 1024), config["patch_size"] ** 2 * config["in_channels"]
    inner = -(-4 * width // config["multiple_of"]) * config["multiple_of"]
    found = affine("x_embedder", width, patch) | affine("final_layer.linear", patch, width)
    found |= affine("final_layer.adaLN_modulation.1", width, told) | mlp("t_embedder.mlp", (0, 2), told, 256, told)
    found |= {"cap_embedder.0.weight": (config["cap_feat_dim"],)} | affine("cap_embedder.1", width, config["cap_feat_dim"])
    depths = {
        "layers": config["num_layers"],
        "noise_refiner": config["num_refiner_layers"],
        "context_refiner": config["num_refiner_layers"],
    }
    for name, key in ((name, f"{name}.{number}") for name, depth in depths.items() for number in range(depth)):
        found |= {f"{key}.attention.qkv.weight": ((heads + 2 * few) * head, width), f"{key}.attention.out.weight": (width, width)}
        found |= {f"{key}.attention.{side}_norm.weight": (head,) for side in "qk"} | {f"{key}.feed_forward.w2.weight": (width, inner)}
        found |= {f"{key}.feed_forward.{side}.weight": (inner, width) for side in ("w1", "w3")}
        found |= {f"{key}.{norm}{number}.weight": (width,) for norm in ("attention_norm", "ffn_norm") for number in (1, 2)}
        found |= affine(f"{key}.adaLN_modulation.1", 4 * width, told) if name != "context_refiner" else {}
    return found


def qwen_image(config: Mapping[str, Any]) -> Shapes:
    head, out = config["attention_head_dim"], config["patch_size"] ** 2 * config["out_channels"]
    width, words = config["num_attention_heads"] * head, config["joint_attention_dim"]
    found = affine("img_in", width, config["in_channels"]) | affine("txt_in", width, words) | {"txt_norm.weight": (words,)}
    found |= mlp("time_text_embed.timestep_embedder", ("linear_1", "linear_2"), width, 256, width)
    for key in (f"transformer_blocks.{number}" for number in range(config["num_layers"])):
        for name in ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"):
            found |= affine(f"{key}.attn.{name}", width, width)
        found |= {f"{key}.attn.{name}.weight": (head,) for name in ("norm_q", "norm_k", "norm_added_q", "norm_added_k")}
        for side in ("img", "txt"):
            found |= affine(f"{key}.{side}_mod.1", 6 * width, width)
            found |= mlp(f"{key}.{side}_mlp.net", ("0.proj", "2"), 4 * width, width, width)
    return found | affine("norm_out.linear", 2 * width, width) | affine("proj_out", out, width)


def cogview4(config: Mapping[str, Any]) -> Shapes:
    width, told = config["num_attention_heads"] * config["attention_head_dim"], config["time_embed_dim"]
    patch = config["patch_size"] ** 2
    found = affine("patch_embed.proj", width, patch * config["in_channels"])
    found |= affine("patch_embed.text_proj", width, config["text_embed_dim"])
    for name, wide in (("timestep", width), ("condition", 6 * config["condition_dim"])):
        found |= mlp(f"time_condition_embed.{name}_embedder", ("linear_1", "linear_2"), told, wide, told)
    for key in (f"transformer_blocks.{number}" for number in range(config["num_layers"])):
        found |= affine(f"{key}.norm1.linear", 12 * width, told) | mlp(f"{key}.ff.net", ("0.proj", "2"), 4 * width, width, width)
        for name in ("to_q", "to_k", "to_v", "to_out.0"):
            found |= affine(f"{key}.attn1.{name}", width, width)
    return found | affine("norm_out.linear", 2 * width, told) | affine("proj_out", patch * config["out_channels"], width)


def flux2(config: Mapping[str, Any]) -> Shapes:
    head, wide = config["attention_head_dim"], config["mlp_ratio"]
    width = config["num_attention_heads"] * head
    inner, told = int(width * wide), config["timestep_guidance_channels"]

    def bare(key: str, *weight: int) -> Shapes:
        return affine(key, *weight, bias=False)

    found = bare("img_in", width, config["in_channels"]) | bare("txt_in", width, config["joint_attention_dim"])
    for name in ("time_in", *(["guidance_in"] if config["guidance_embeds"] else [])):
        found |= bare(f"{name}.in_layer", width, told) | bare(f"{name}.out_layer", width, width)
    for name, parts in (("double_stream_modulation_img", 6), ("double_stream_modulation_txt", 6), ("single_stream_modulation", 3)):
        found |= bare(f"{name}.lin", parts * width, width)
    for key in (f"double_blocks.{number}.{side}" for number in range(config["num_layers"]) for side in ("img", "txt")):
        found |= bare(f"{key}_attn.qkv", 3 * width, width) | bare(f"{key}_attn.proj", width, width)
        found |= {f"{key}_attn.norm.{name}_norm.scale": (head,) for name in ("query", "key")}
        found |= bare(f"{key}_mlp.0", 2 * inner, width) | bare(f"{key}_mlp.2", width, inner)
    for key in (f"single_blocks.{number}" for number in range(config["num_single_layers"])):
        found |= bare(f"{key}.linear1", 3 * width + 2 * inner, width) | bare(f"{key}.linear2", width, width + inner)
        found |= {f"{key}.norm.{name}_norm.scale": (head,) for name in ("query", "key")}
    return found | bare("final_layer.linear", config["in_channels"], width) | bare("final_layer.adaLN_modulation.1", 2 * width, width)


def sana(config: Mapping[str, Any]) -> Shapes:
    width = config["num_attention_heads"] * config["attention_head_dim"]
    inner, patch = int(config["mlp_ratio"] * width), config["patch_size"]
    found = affine("x_embedder.proj", width, config["in_channels"], patch, patch) | mlp("t_embedder.mlp", (0, 2), width, 256, width)
    found |= affine("t_block.1", 6 * width, width) | mlp("y_embedder.y_proj", ("fc1", "fc2"), width, config["caption_channels"], width)
    found |= {"attention_y_norm.weight": (width,), "final_layer.scale_shift_table": (2, width)}
    found |= {"pos_embed": (1, 1, width), "y_embedder.y_embedding": (1, config["caption_channels"])}  # which diffusers has no use for
    for key in (f"blocks.{number}" for number in range(config["num_layers"])):
        found |= affine(f"{key}.attn.qkv", 3 * width, width, bias=False) | affine(f"{key}.attn.proj", width, width)
        found |= affine(f"{key}.cross_attn.q_linear", width, width) | affine(f"{key}.cross_attn.kv_linear", 2 * width, width)
        found |= affine(f"{key}.cross_attn.proj", width, width) | {f"{key}.scale_shift_table": (6, width)}
        found |= affine(f"{key}.mlp.inverted_conv.conv", 2 * inner, width, 1, 1) | affine(f"{key}.mlp.depth_conv.conv", 2 * inner, 1, 3, 3)
        found |= affine(f"{key}.mlp.point_conv.conv", width, inner, 1, 1, bias=False)
    return found | affine("final_layer.linear", patch**2 * config["out_channels"], width)


def krea2(config: Mapping[str, Any]) -> Shapes:
    width, words = config["num_attention_heads"] * config["attention_head_dim"], config["text_hidden_dim"]

    def block(key: str, wide: int, heads: int, few: int, inner: int) -> Shapes:
        head = wide // heads
        layers = {"attn.wq": (wide, wide), "attn.wk": (few * head, wide), "attn.wv": (few * head, wide), "attn.wo": (wide, wide)}
        layers |= {"attn.gate": (wide, wide), "mlp.gate": (inner, wide), "mlp.up": (inner, wide), "mlp.down": (wide, inner)}
        norms = {"attn.qknorm.qnorm": head, "attn.qknorm.knorm": head, "prenorm": wide, "postnorm": wide}
        shapes = {f"{key}.{name}.weight": shape for name, shape in layers.items()}
        return shapes | {f"{key}.{name}.scale": (size,) for name, size in norms.items()}

    found = affine("first", width, config["in_channels"]) | mlp("tmlp", (0, 2), width, config["timestep_embed_dim"], width)
    found |= affine("tproj.1", 6 * width, width) | {"txtmlp.0.scale": (words,)} | mlp("txtmlp", (1, 3), width, words, width)
    found |= affine("txtfusion.projector", 1, config["num_text_layers"], bias=False)
    heads = config["text_num_attention_heads"], config["text_num_key_value_heads"], config["text_intermediate_size"]
    for name, depth in (("layerwise", config["num_layerwise_text_blocks"]), ("refiner", config["num_refiner_text_blocks"])):
        for number in range(depth):
            found |= block(f"txtfusion.{name}_blocks.{number}", words, *heads)
    heads = config["num_attention_heads"], config["num_key_value_heads"], config["intermediate_size"]
    for number in range(config["num_layers"]):
        found |= block(f"blocks.{number}", width, *heads) | {f"blocks.{number}.mod.lin": (6 * width,)}
    found |= {"last.norm.scale": (width,), "last.modulation.lin": (2, width)}
    return found | affine("last.linear", config["in_channels"], width)


def hidream(config: Mapping[str, Any]) -> Shapes:
    width, patch, many = (
        config["num_attention_heads"] * config["attention_head_dim"],
        config["patch_size"] ** 2,
        config["num_routed_experts"],
    )

    def gated(key: str, hidden: int) -> Shapes:
        inner = -(-int(2 * hidden / 3) // 256) * 256
        return {f"{key}.w1.weight": (inner, width), f"{key}.w3.weight": (inner, width), f"{key}.w2.weight": (width, inner)}

    def routed(key: str) -> Shapes:
        found = gated(f"{key}.shared_experts", 2 * width) | {f"{key}.gate.weight": (many, width)}
        return found | {name: shape for expert in range(many) for name, shape in gated(f"{key}.experts.{expert}", 4 * width).items()}

    def attention(key: str, *sides: str) -> Shapes:
        found = {}
        for name in (f"{layer}{side}" for side in sides for layer in ("to_q", "to_k", "to_v", "to_out")):
            found |= affine(f"{key}.{name}", width, width)
        return found | {f"{key}.{name}_rms_norm{side}.weight": (width,) for side in sides for name in "qk"}

    found = affine("x_embedder.proj", width, patch * config["in_channels"])
    found |= mlp("t_embedder.timestep_embedder", ("linear_1", "linear_2"), width, 256, width)
    found |= mlp("p_embedder.pooled_embedder", ("linear_1", "linear_2"), width, config["text_emb_dim"], width)
    for number in range(config["num_layers"]):
        key = f"double_stream_blocks.{number}.block"
        found |= affine(f"{key}.adaLN_modulation.1", 12 * width, width) | attention(f"{key}.attn1", "", "_t")
        found |= routed(f"{key}.ff_i") | gated(f"{key}.ff_t", 4 * width)
    for number in range(config["num_single_layers"]):
        key = f"single_stream_blocks.{number}.block"
        found |= affine(f"{key}.adaLN_modulation.1", 6 * width, width) | attention(f"{key}.attn1", "") | routed(f"{key}.ff_i")
    blocks, words = config["num_layers"] + config["num_single_layers"], config["caption_channels"]
    found |= {f"caption_projection.{number}.linear.weight": (width, words[number < blocks]) for number in range(blocks + 1)}
    return (
        found
        | affine("final_layer.linear", patch * config["out_channels"], width)
        | affine("final_layer.adaLN_modulation.1", 2 * width, width)
    )


def ovis_image(config: Mapping[str, Any]) -> Shapes:
    head, words = config["attention_head_dim"], config["joint_attention_dim"]
    width = config["num_attention_heads"] * head
    norms = {"norm.query_norm.weight": (head,), "norm.key_norm.weight": (head,)}
    found = (
        affine("img_in", width, config["in_channels"]) | affine("semantic_txt_in", width, words) | {"semantic_txt_norm.weight": (words,)}
    )
    found |= mlp("time_in", ("in_layer", "out_layer"), width, 256, width)
    for key in (f"double_blocks.{number}.{side}" for number in range(config["num_layers"]) for side in ("img", "txt")):
        found |= affine(f"{key}_mod.lin", 6 * width, width) | affine(f"{key}_attn.qkv", 3 * width, width)
        found |= affine(f"{key}_attn.proj", width, width) | {f"{key}_attn.{name}": shape for name, shape in norms.items()}
        found |= affine(f"{key}_mlp.gate_proj", 4 * width, width) | affine(f"{key}_mlp.up_proj", 4 * width, width)
        found |= affine(f"{key}_mlp.down_proj", width, 4 * width)
    for key in (f"single_blocks.{number}" for number in range(config["num_single_layers"])):
        found |= affine(f"{key}.linear1", 11 * width, width) | affine(f"{key}.linear2", width, 5 * width)
        found |= affine(f"{key}.modulation.lin", 3 * width, width) | {f"{key}.{name}": shape for name, shape in norms.items()}
    found |= affine("final_layer.adaLN_modulation.1", 2 * width, width)
    return found | affine("final_layer.linear", config["out_channels"], width)


def ernie_image(config: Mapping[str, Any]) -> Shapes:
    width, inner, words = config["hidden_size"], config["ffn_hidden_size"], config["text_in_dim"]
    found = affine("x_embedder.proj", width, config["in_channels"], 1, 1) | mlp(
        "time_embedding", ("linear_1", "linear_2"), width, width, width
    )
    found |= affine("text_proj", width, words, bias=False) if words != width else {}
    found |= affine("adaLN_modulation.1", 6 * width, width) | affine("final_norm.linear", 2 * width, width)
    for key in (f"layers.{number}" for number in range(config["num_layers"])):
        for name in ("to_q", "to_k", "to_v", "to_out.0"):
            found |= affine(f"{key}.self_attention.{name}", width, width, bias=False)
        found |= {f"{key}.self_attention.{name}.weight": (width // config["num_attention_heads"],) for name in ("norm_q", "norm_k")}
        found |= {f"{key}.mlp.{name}.weight": (inner, width) for name in ("gate_proj", "up_proj")}
        found |= {f"{key}.mlp.linear_fc2.weight": (width, inner)}
        found |= {f"{key}.{name}.weight": (width,) for name in ("adaLN_sa_ln", "adaLN_mlp_ln")}
    return found | affine("final_linear", config["out_channels"], width)
