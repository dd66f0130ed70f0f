"""Random models of every family, small enough for a test to train: 32 px, tens of thousands of numbers, in diffusers layout.

Each has the parts of its large sibling: tokenizers padded as there, scheduler, learned variance, packed or shifted latents.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    PixArtAlphaPipeline,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from tokenizers.pre_tokenizers import ByteLevel
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3Model,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from diffalign.data.world.captions import VOCABULARY

WIDTH = 16  # of every text encoder
SIDE = 32  # pixels of an image; its latent has 8
STEPS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False, "steps_offset": 1}
# The last block of SD3 gives the prompt's side away, so what is asked from there moves nothing and learns nothing.
IDLE = "transformer_blocks.1.attn.add_q_proj"
# What the stock pipelines must be told to draw so small a picture.
DRAWN: dict[str, dict[str, Any]] = {
    "pixart": {"use_resolution_binning": False, "height": SIDE, "width": SIDE},
    "flux": {"height": SIDE, "width": SIDE},
    "zimage": {"height": SIDE, "width": SIDE},
}
CHAT = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def clip_tokenizer(pad: str | None = None) -> Any:
    """Return a byte-pair tokenizer of the shapes world's words, 12 tokens long; `pad` replaces the end token as padding."""
    # Written out, since training one breaks ties at random: the same words would have other numbers in every run.
    letters = sorted(ByteLevel.alphabet())
    merges = list(dict.fromkeys(pair for word in VOCABULARY for pair in _pairs(word)))
    tokens = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters), *(a + b for a, b in merges)]
    vocab = {token: number for number, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=12, **({} if pad is None else {"pad_token": pad}))


def _pairs(word: str) -> list[tuple[str, str]]:
    """Return what is joined to make `word`: r and e, then re and d, for red."""
    pieces = [*word[:-1], f"{word[-1]}</w>"]
    return [("".join(pieces[:i]), pieces[i]) for i in range(1, len(pieces))]


def t5_tokenizer() -> Any:
    """Return a unigram tokenizer of the same words, and of letters for the others."""
    words = [(f"▁{word}", -3.0) for word in VOCABULARY]
    letters = [(letter, -9.0) for letter in "▁abcdefghijklmnopqrstuvwxyz" if f"▁{letter}" not in VOCABULARY]
    return T5Tokenizer(vocab=[("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -20.0), *words, *letters], extra_ids=0, model_max_length=512)


def clip(kind: Any, tokenizer: Any, layers: int = 2, activation: str = "quick_gelu", width: int = WIDTH) -> Any:
    """Return a random CLIP text encoder of class `kind`."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=width,
        projection_dim=width,
        num_hidden_layers=layers,
        num_attention_heads=2,
        hidden_act=activation,
        max_position_embeddings=tokenizer.model_max_length,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    return kind(config)


def t5(tokenizer: Any, width: int = WIDTH) -> Any:
    """Return a random T5 encoder."""
    sizes = {"d_model": width, "d_kv": 8, "d_ff": WIDTH, "num_heads": 2, "num_layers": 1}
    return T5EncoderModel(T5Config(vocab_size=len(tokenizer), feed_forward_proj="gated-gelu", dropout_rate=0.0, **sizes))


def autoencoder(channels: int = 4, **config: Any) -> Any:
    """Return a random autoencoder that makes 8 by 8 latents of 32 pixels."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 8, 8),
        layers_per_block=1,
        latent_channels=channels,
        norm_num_groups=4,
        sample_size=SIDE,
        **config,
    )


def unet(*blocks: str, **config: Any) -> Any:
    """Return a random UNet with the down blocks `blocks`, and their mirror."""
    mirror = tuple(block.replace("Down", "Up") for block in reversed(blocks))
    shape = {"sample_size": 8, "block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4}
    return UNet2DConditionModel(down_block_types=blocks, up_block_types=mirror, attention_head_dim=2, **shape, **config)


def stable_diffusion(activation: str = "quick_gelu", **schedule: Any) -> Any:
    """Return a Stable Diffusion 1; keywords go into the scheduler's config."""
    tokenizer = clip_tokenizer()
    text, vae = clip(CLIPTextModel, tokenizer, layers=1, activation=activation), autoencoder()
    denoiser = unet("CrossAttnDownBlock2D", "DownBlock2D", cross_attention_dim=WIDTH)
    scheduler = DDIMScheduler(**{**STEPS, "set_alpha_to_one": False, **schedule})
    return StableDiffusionPipeline(vae, text, tokenizer, denoiser, scheduler, None, None, requires_safety_checker=False)


def stable_diffusion_2(**schedule: Any) -> Any:
    """Return a Stable Diffusion 2 with v-prediction and a zero terminal signal-to-noise ratio."""
    zero = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    return stable_diffusion("gelu", **{**zero, **schedule})


def stable_diffusion_xl(**schedule: Any) -> Any:
    """Return a Stable Diffusion XL: pooled embeddings and six time ids, each embedded in 8 numbers."""
    tokenizer, second = clip_tokenizer(), clip_tokenizer(pad="!")
    texts = clip(CLIPTextModel, tokenizer), clip(CLIPTextModelWithProjection, second, activation="gelu")
    vae = autoencoder(scaling_factor=0.13025)
    denoiser = unet(
        "DownBlock2D",
        "CrossAttnDownBlock2D",
        cross_attention_dim=2 * WIDTH,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=WIDTH + 6 * 8,
    )
    config = {name: value for name, value in STEPS.items() if name != "clip_sample"}
    scheduler = EulerDiscreteScheduler(**{**config, "timestep_spacing": "leading", **schedule})
    return StableDiffusionXLPipeline(vae, *texts, tokenizer, second, denoiser, scheduler, add_watermarker=False)


def pixart(alpha: bool = False, use_additional_conditions: bool = False) -> Any:
    """Return a PixArt-sigma, or alpha; with additional conditions it is told its resolution, as the alpha of 1024 px is."""
    tokenizer = t5_tokenizer()
    denoiser = PixArtTransformer2DModel(
        num_attention_heads=3,
        attention_head_dim=8,
        cross_attention_dim=24,
        caption_channels=WIDTH,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        sample_size=128 if use_additional_conditions else 8,  # by which the stock pipeline knows whether to tell it
        use_additional_conditions=use_additional_conditions,
    )
    vae = autoencoder(scaling_factor=0.18215 if alpha else 0.13025)
    scheduler = DPMSolverMultistepScheduler(beta_start=0.0001, beta_end=0.02, beta_schedule="linear")
    return (PixArtAlphaPipeline if alpha else PixArtSigmaPipeline)(tokenizer, t5(tokenizer), vae, denoiser, scheduler)


def stable_diffusion_3(channels: int = 16, absent: Sequence[str] = (), second_clip: int = WIDTH, **schedule: Any) -> Any:
    """Return a Stable Diffusion 3.5 with the text encoders named in `absent` left out, and a second CLIP of another width."""
    tokenizers = clip_tokenizer(), clip_tokenizer(pad="!"), t5_tokenizer()
    first = clip(CLIPTextModelWithProjection, tokenizers[0])
    second = clip(CLIPTextModelWithProjection, tokenizers[1], activation="gelu", width=second_clip)
    texts: list[Any] = [first, tokenizers[0], second, tokenizers[1], t5(tokenizers[2], 3 * WIDTH), tokenizers[2]]
    for position, name in enumerate(("text_encoder", "text_encoder_2", "text_encoder_3")):
        if name in absent:
            texts[2 * position : 2 * position + 2] = None, None
    denoiser = SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=channels,
        out_channels=channels,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_projection_dim=16,
        joint_attention_dim=3 * WIDTH,  # wider than both CLIPs side by side, as T5 is
        pooled_projection_dim=WIDTH + second_clip,
        pos_embed_max_size=8,
        qk_norm="rms_norm",
        dual_attention_layers=(0,),
    )
    vae = autoencoder(channels, scaling_factor=1.5305, shift_factor=0.0609, use_quant_conv=False, use_post_quant_conv=False)
    scheduler = FlowMatchEulerDiscreteScheduler(**{"shift": 3.0, **schedule})
    return StableDiffusion3Pipeline(denoiser, scheduler, vae, *texts)


def flux(schnell: bool = False, **schedule: Any) -> Any:
    """Return a Flux-dev, which is told a guidance scale, or a Flux-schnell, which is not and has no shift."""
    tokenizer, second = clip_tokenizer(), t5_tokenizer()
    denoiser = FluxTransformer2DModel(
        in_channels=4 * 16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        guidance_embeds=not schnell,
        axes_dims_rope=(2, 2, 4),
    )
    vae = autoencoder(16, scaling_factor=0.3611, shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False)
    shift = {"base_shift": 0.5, "max_shift": 1.15, "base_image_seq_len": 256, "max_image_seq_len": 4096}
    shift |= {"shift": 1.0} if schnell else {"shift": 3.0, "use_dynamic_shifting": True}
    scheduler = FlowMatchEulerDiscreteScheduler(**{**shift, **schedule})
    return FluxPipeline(scheduler, vae, clip(CLIPTextModel, tokenizer), tokenizer, t5(second), second, denoiser)


def qwen_tokenizer() -> Any:
    """Return a byte-level tokenizer of single letters, with the chat template of the Qwen family."""
    letters = sorted(ByteLevel.alphabet())
    ends = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    vocab = {token: number for number, token in enumerate([*letters, *ends])}
    return Qwen2Tokenizer(vocab=vocab, merges=[], additional_special_tokens=ends, chat_template=CHAT, model_max_length=512)


def qwen3(tokenizer: Any) -> Any:
    """Return a random Qwen3 without a head."""
    sizes = {"hidden_size": WIDTH, "intermediate_size": WIDTH, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}
    return Qwen3Model(Qwen3Config(vocab_size=len(tokenizer), num_hidden_layers=2, **sizes))


def z_image(**schedule: Any) -> Any:
    """Return a Z-Image, whose times have the fixed shift of Z-Image-Turbo."""
    tokenizer = qwen_tokenizer()
    denoiser = ZImageTransformer2DModel(
        dim=16, n_layers=2, n_refiner_layers=1, n_heads=2, n_kv_heads=2, cap_feat_dim=WIDTH, axes_dims=[2, 2, 4], axes_lens=[256, 64, 64]
    )
    vae = autoencoder(16, scaling_factor=0.3611, shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False)
    scheduler = FlowMatchEulerDiscreteScheduler(**{"shift": 3.0, **schedule})
    return ZImagePipeline(scheduler, vae, qwen3(tokenizer), tokenizer, denoiser)


MAKERS: dict[str, Callable[..., Any]] = {
    "sd": stable_diffusion,
    "sd2": stable_diffusion_2,
    "sdxl": stable_diffusion_xl,
    "pixart": pixart,
    "sd3": stable_diffusion_3,
    "flux": flux,
    "z_image": z_image,
}

# One of every form that a family takes: (kind, options).
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "sd": ("sd", {}),
    "sd2": ("sd2", {}),
    "sdxl": ("sdxl", {}),
    "pixart-sigma": ("pixart", {}),
    "pixart-alpha": ("pixart", {"alpha": True}),
    "pixart-alpha-1024": ("pixart", {"alpha": True, "use_additional_conditions": True}),
    "sd3": ("sd3", {}),
    "sd3-4-channels-no-t5": ("sd3", {"channels": 4, "absent": ["text_encoder_3"]}),
    "flux-dev": ("flux", {}),
    "flux-schnell": ("flux", {"schnell": True}),
    "z-image": ("z_image", {}),
}


def write_micro(kind: str, folder: Path, *, variant: str | None = None, **options: Any) -> Path:
    """Write the random model `kind` (a key of `MAKERS`, whose keywords `options` are) and return its folder."""
    torch.manual_seed(0)
    pipe = MAKERS[kind](**options)
    for name in ("unet", "transformer"):
        if name in pipe.components:
            stir(pipe.components[name])
    if variant == "fp16":
        pipe.to(torch.float16)
    pipe.save_pretrained(folder, variant=variant)
    return folder


def stir(model: nn.Module) -> None:
    """Fill the matrices that are zero, where a transformer begins as if its blocks were not there, with small random numbers."""
    for parameter in model.parameters():
        if parameter.dim() > 1 and not parameter.any():
            nn.init.normal_(parameter, std=0.1)


def stock(folder: Path) -> Any:
    """Return the stock pipeline of a model folder, as a user without this package loads it."""
    index = json.loads((folder / "model_index.json").read_text())
    absent = [name for name, kind in index.items() if name.startswith(("text_encoder", "tokenizer")) and kind[0] is None]
    pipe = DiffusionPipeline.from_pretrained(folder, **dict.fromkeys(absent))  # which diffusers wants to be told again
    pipe.set_progress_bar_config(disable=True)
    return pipe


def picture(pipe: Any, prompt: Any = "a red star", *, steps: int = 2, seed: int = 3, **options: Any) -> np.ndarray:
    """Return (1, H, W, 3) in [0, 1]: what a stock pipeline of any kind draws."""
    kind = next((kind for kind in DRAWN if kind in type(pipe).__name__.lower()), "")
    generator = torch.Generator().manual_seed(seed)
    return pipe(prompt, num_inference_steps=steps, generator=generator, output_type="np", **{**DRAWN.get(kind, {}), **options}).images
