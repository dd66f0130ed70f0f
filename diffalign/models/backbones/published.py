"""The configs of published models, which a single-file checkpoint leaves out: what `save_pretrained` of their pipelines writes.

Facts from the model cards and configs of Stable Diffusion 1.5, 2.1, XL, 3 medium and 3.5, and Playground v2.5. Their tokenizer
is CLIP's, which open_clip has; T5's is in no package, so a model that reads T5 needs the folder of its configs.
"""

from __future__ import annotations

import gzip
import itertools
import json
from pathlib import Path
from typing import Any

Configs = dict[str, dict[str, Any]]  # by part; that of the pipeline is model_index
DIFFUSERS, TRANSFORMERS = "diffusers", "transformers"
ABSENT = [None, None]


def _clip(width: int, layers: int, heads: int, projection: int, act: str, kind: str = "CLIPTextModel") -> dict[str, Any]:
    return {
        "architectures": [kind],
        "model_type": "clip_text_model",
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "projection_dim": projection,
        "hidden_act": act,
        "max_position_embeddings": 77,
        "vocab_size": 49408,
        "bos_token_id": 0,
        "eos_token_id": 2,  # as published; transformers takes 2 to mean that the pooled token is the one of the highest number
        "pad_token_id": 1,
    }


CLIP_L = _clip(768, 12, 12, 768, "quick_gelu")
OPENCLIP_H = _clip(1024, 23, 16, 512, "gelu")  # without its last layer
OPENCLIP_G = _clip(1280, 32, 20, 1280, "gelu", "CLIPTextModelWithProjection")
NOISE = {"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
DDIM = {"_class_name": "DDIMScheduler", **NOISE, "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}
EULER = {"_class_name": "EulerDiscreteScheduler", **NOISE, "timestep_spacing": "leading", "steps_offset": 1}
EDM = {
    "_class_name": "EDMDPMSolverMultistepScheduler",
    "num_train_timesteps": 1000,
    "sigma_data": 0.5,
    "sigma_max": 80.0,
    "sigma_min": 0.002,
}
EDM |= {"rho": 7.0, "prediction_type": "epsilon", "solver_order": 2, "solver_type": "midpoint", "algorithm_type": "dpmsolver++"}
FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0}


def _vae(**facts: Any) -> dict[str, Any]:
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4}
    shape = {"block_out_channels": [128, 256, 512, 512], "layers_per_block": 2, "norm_num_groups": 32, "latent_channels": 4}
    return {"_class_name": "AutoencoderKL", "in_channels": 3, "out_channels": 3, **blocks, **shape, **facts}


def _unet(levels: int, attention: tuple[int, ...], **facts: Any) -> dict[str, Any]:
    down = ["CrossAttnDownBlock2D" if level in attention else "DownBlock2D" for level in range(levels)]
    up = ["CrossAttnUpBlock2D" if level in attention else "UpBlock2D" for level in reversed(range(levels))]
    widths = [320, 640, 1280, 1280][:levels]
    shape = {"in_channels": 4, "out_channels": 4, "layers_per_block": 2, "block_out_channels": widths}
    return {"_class_name": "UNet2DConditionModel", "down_block_types": down, "up_block_types": up, **shape, **facts}


def _model(
    kind: str, networks: tuple[dict[str, Any], dict[str, Any]], scheduler: dict[str, Any], encoders: Configs, **facts: Any
) -> Configs:
    """Return the configs of a pipeline of denoiser and VAE (`networks`); `facts` are what else its index says."""
    denoiser, vae = networks
    component = "unet" if denoiser["_class_name"].startswith("UNet") else "transformer"
    parts = {component: denoiser, "vae": vae, "scheduler": scheduler}
    index: dict[str, Any] = {name: [DIFFUSERS, config["_class_name"]] for name, config in parts.items()}
    for name, config in encoders.items():
        index[name] = [TRANSFORMERS, config["architectures"][0]]
        index[name.replace("text_encoder", "tokenizer")] = [TRANSFORMERS, "CLIPTokenizer"]
    return {"model_index": {"_class_name": kind, **index, **facts}, **parts, **encoders}


_PLAIN = {"feature_extractor": ABSENT, "image_encoder": ABSENT}
_SD = {"safety_checker": ABSENT, "requires_safety_checker": False, **_PLAIN}
_SD3 = {"text_encoder_3": ABSENT, "tokenizer_3": ABSENT, **_PLAIN}
_SD3_VAE = _vae(
    latent_channels=16, scaling_factor=1.5305, shift_factor=0.0609, use_quant_conv=False, use_post_quant_conv=False, sample_size=1024
)
_PROJECTED = {**CLIP_L, "architectures": ["CLIPTextModelWithProjection"]}


def _sd3(layers: int, **facts: Any) -> Configs:
    shape = {"num_layers": layers, "num_attention_heads": layers, "attention_head_dim": 64, "caption_projection_dim": 64 * layers}
    sizes = {"in_channels": 16, "out_channels": 16, "patch_size": 2, "sample_size": 128, "pos_embed_max_size": 192}
    prompts = {"joint_attention_dim": 4096, "pooled_projection_dim": 2048}
    network = {"_class_name": "SD3Transformer2DModel", **shape, **sizes, **prompts, **facts}
    return _model("StableDiffusion3Pipeline", (network, _SD3_VAE), FLOW, {"text_encoder": _PROJECTED, "text_encoder_2": OPENCLIP_G}, **_SD3)


_SD1_UNET = _unet(4, (0, 1, 2), attention_head_dim=8, cross_attention_dim=768, sample_size=64)
_SD2_UNET = _unet(4, (0, 1, 2), attention_head_dim=[5, 10, 20, 20], cross_attention_dim=1024, use_linear_projection=True, sample_size=96)
_XL_UNET = _unet(
    3,
    (1, 2),
    attention_head_dim=[5, 10, 20],
    transformer_layers_per_block=[1, 2, 10],
    cross_attention_dim=2048,
    use_linear_projection=True,
    addition_embed_type="text_time",
    addition_time_embed_dim=256,
    projection_class_embeddings_input_dim=2816,
    sample_size=128,
)
_SD1_VAE, _SD2_VAE = (_vae(scaling_factor=0.18215, sample_size=size) for size in (512, 768))
_XL_VAE = _vae(scaling_factor=0.13025, sample_size=1024, force_upcast=True)
_XL_ENCODERS = {"text_encoder": CLIP_L, "text_encoder_2": OPENCLIP_G}

# By the name that diffusers gives to the kind of checkpoint.
PUBLISHED: dict[str, Configs] = {
    "v1": _model("StableDiffusionPipeline", (_SD1_UNET, _SD1_VAE), DDIM, {"text_encoder": CLIP_L}, **_SD),
    "v2": _model("StableDiffusionPipeline", (_SD2_UNET, _SD2_VAE), DDIM, {"text_encoder": OPENCLIP_H}, **_SD),
    "xl_base": _model("StableDiffusionXLPipeline", (_XL_UNET, _XL_VAE), EULER, _XL_ENCODERS, force_zeros_for_empty_prompt=True, **_PLAIN),
    # Its files have the means and deviations of its latents in them.
    "playground-v2-5": _model(
        "StableDiffusionXLPipeline",
        (_XL_UNET, _XL_VAE | {"scaling_factor": 0.5}),
        EDM,
        _XL_ENCODERS,
        force_zeros_for_empty_prompt=True,
        **_PLAIN,
    ),
    "sd3": _sd3(24),
    "sd35_medium": _sd3(24, pos_embed_max_size=384, qk_norm="rms_norm", dual_attention_layers=list(range(13))),
    "sd35_large": _sd3(38, qk_norm="rms_norm"),
}


def write_configs(configs: Configs, folder: Path) -> None:
    """Write the configs and the tokenizers of a model into `folder`, as its pipeline would; weights are left out.

    Example:
        >>> write_configs(PUBLISHED["v1"], Path("configs-of-sd15"))  # doctest: +SKIP
    """
    for part, config in configs.items():
        file = {"model_index": Path("model_index.json"), "scheduler": Path("scheduler", "scheduler_config.json")}
        place = folder / file.get(part, Path(part, "config.json"))
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(json.dumps(config, indent=2) + "\n")
        if part.startswith("text_encoder"):
            # OpenCLIP's models were trained with zeros behind the end, CLIP's own with more ends.
            pad = "<|endoftext|>" if config["hidden_act"] == "quick_gelu" else "!"
            clip_tokenizer(pad).save_pretrained(folder / part.replace("text_encoder", "tokenizer"))


def clip_tokenizer(pad_token: str) -> Any:
    """Return CLIP's tokenizer (49,408 tokens, 77 to a prompt), made of the merges that open_clip brings along."""
    from open_clip.tokenizer import bytes_to_unicode, default_bpe
    from transformers import CLIPTokenizer

    ends = ["<|startoftext|>", "<|endoftext|>"]
    with gzip.open(default_bpe(), "rt", encoding="utf-8") as lines:  # the first line is no merge, and the last ones are not CLIP's
        merges = [tuple(line.split()) for line in itertools.islice(lines, 1, 49152 - 256 - 2 + 1)]
    letters = list(bytes_to_unicode().values())
    words = [*letters, *(f"{letter}</w>" for letter in letters), *map("".join, merges), *ends]
    vocab = {word: number for number, word in enumerate(words)}
    tokenizer: Any = CLIPTokenizer
    return tokenizer(vocab=vocab, merges=merges, pad_token=pad_token, model_max_length=77)
