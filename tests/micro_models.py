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
    ChromaPipeline,
    ChromaTransformer2DModel,
    CogView4Pipeline,
    CogView4Transformer2DModel,
    DDIMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    EDMDPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    Lumina2Pipeline,
    Lumina2Transformer2DModel,
    PixArtAlphaPipeline,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from torch import nn
from transformers import (
    CLIPTextModel,
    CLIPTextModelWithProjection,
    GlmConfig,
    GlmModel,
)

from tests.edit_models import flux_kontext, qwen_image_edit, with_picture
from tests.later_models import ernie_image, flux2, hidream, kolors, krea2, ovis_image, sana
from tests.micro_parts import (
    QWEN_TEMPLATE,
    SIDE,
    SMALL,
    WIDTH,
    autoencoder,
    clip,
    clip_tokenizer,
    film_autoencoder,
    flux_autoencoder,
    gemma,
    gemma_tokenizer,
    glm_tokenizer,
    qwen3,
    qwen_tokenizer,
    qwen_vl,
    t5,
    t5_tokenizer,
    unet,
    worded_qwen_tokenizer,
)

STEPS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False, "steps_offset": 1}
TOKENS = {"flux2-klein": 64, "flux2-dev": 64}  # of a prompt, where a language model has many layers
# What the stock pipelines must be told to draw so small a picture.
DRAWN: dict[str, dict[str, Any]] = {
    "kontext": {"height": SIDE, "width": SIDE, "max_area": SIDE * SIDE},
    "pixart": {"use_resolution_binning": False, "height": SIDE, "width": SIDE},
    "sana": {"use_resolution_binning": False, "height": SIDE, "width": SIDE},
    "flux2": {"height": SIDE, "width": SIDE, "max_sequence_length": TOKENS["flux2-klein"]},
    "flux": {"height": SIDE, "width": SIDE},
    **{
        name: {"height": SIDE, "width": SIDE}
        for name in ("zimage", "qwenimage", "chroma", "krea2", "ernieimage", "hidreamimage", "ovisimage")
    },
}


def is_idle(name: str) -> bool:
    """Return whether a weight learns nothing: the last block of SD3 and Qwen-Image gives the prompt's side away."""
    return any(f"transformer_blocks.1.attn.{layer}" in name for layer in ("add_q_proj", "to_add_out"))


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


def stable_diffusion_xl(playground: bool = False, **schedule: Any) -> Any:
    """Return a Stable Diffusion XL, pooled embeddings and six time ids, each embedded in 8 numbers, or a Playground v2.5."""
    tokenizer, second = clip_tokenizer(), clip_tokenizer(pad="!")
    texts = clip(CLIPTextModel, tokenizer), clip(CLIPTextModelWithProjection, second, activation="gelu")
    moments = {"latents_mean": [-1.6, 1.9, -1.4, 2.5], "latents_std": [8.5, 5.9, 6.5, 5.2]}
    vae = autoencoder(scaling_factor=0.5, **moments) if playground else autoencoder(scaling_factor=0.13025)
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
    euler = EulerDiscreteScheduler(**{**config, "timestep_spacing": "leading", **({} if playground else schedule)})
    scheduler = EDMDPMSolverMultistepScheduler(**schedule) if playground else euler
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
    vae = flux_autoencoder()
    shift = {"base_shift": 0.5, "max_shift": 1.15, "base_image_seq_len": 256, "max_image_seq_len": 4096}
    shift |= {"shift": 1.0} if schnell else {"shift": 3.0, "use_dynamic_shifting": True}
    scheduler = FlowMatchEulerDiscreteScheduler(**{**shift, **schedule})
    return FluxPipeline(scheduler, vae, clip(CLIPTextModel, tokenizer), tokenizer, t5(second), second, denoiser)


def z_image(**schedule: Any) -> Any:
    """Return a Z-Image, whose times have the fixed shift of Z-Image-Turbo."""
    tokenizer = qwen_tokenizer()
    denoiser = ZImageTransformer2DModel(
        dim=16, n_layers=2, n_refiner_layers=1, n_heads=2, n_kv_heads=2, cap_feat_dim=WIDTH, axes_dims=[2, 2, 4], axes_lens=[256, 64, 64]
    )
    vae = flux_autoencoder()
    scheduler = FlowMatchEulerDiscreteScheduler(**{"shift": 3.0, **schedule})
    return ZImagePipeline(scheduler, vae, qwen3(tokenizer), tokenizer, denoiser)


def qwen_image(**schedule: Any) -> Any:
    """Return a Qwen-Image, with the shift of its scheduler."""
    tokenizer = worded_qwen_tokenizer(QWEN_TEMPLATE)
    denoiser = QwenImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        axes_dims_rope=(2, 2, 4),
    )
    shift = {"base_shift": 0.5, "max_shift": 0.9, "max_image_seq_len": 8192, "use_dynamic_shifting": True, "shift_terminal": 0.02}
    scheduler = FlowMatchEulerDiscreteScheduler(**{**shift, **schedule})
    return QwenImagePipeline(scheduler, film_autoencoder(), qwen_vl(tokenizer), tokenizer, denoiser)


def chroma(**schedule: Any) -> Any:
    """Return a Chroma, whose times have no shift."""
    tokenizer = t5_tokenizer()
    denoiser = ChromaTransformer2DModel(
        in_channels=4 * 16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        axes_dims_rope=(2, 2, 4),
        approximator_num_channels=16,
        approximator_hidden_dim=16,
        approximator_layers=1,
    )
    scheduler = FlowMatchEulerDiscreteScheduler(**{"shift": 1.0, **schedule})
    return ChromaPipeline(scheduler, flux_autoencoder(), t5(tokenizer), tokenizer, denoiser)


def lumina2(**schedule: Any) -> Any:
    """Return a Lumina-Image 2, with the shift of its scheduler; its pipeline takes 8 pixels to a latent row for granted."""
    tokenizer = gemma_tokenizer(
        "You are an assistant designed to generate superior images with the superior degree of image-text "
        "alignment based on textual prompts or user prompts. <Prompt Start>"
    )
    text = gemma(tokenizer)
    denoiser = Lumina2Transformer2DModel(
        sample_size=4,
        in_channels=16,
        hidden_size=24,
        num_layers=2,
        num_refiner_layers=1,
        num_attention_heads=2,
        num_kv_heads=1,
        multiple_of=8,
        axes_dim_rope=(4, 4, 4),
        axes_lens=(300, 16, 16),
        cap_feat_dim=WIDTH,
    )
    vae = flux_autoencoder(levels=4)
    return Lumina2Pipeline(denoiser, FlowMatchEulerDiscreteScheduler(**{"shift": 6.0, **schedule}), vae, text, tokenizer)


def cogview4(**schedule: Any) -> Any:
    """Return a CogView4, with the shift of its scheduler."""
    tokenizer = glm_tokenizer()
    text = GlmModel(GlmConfig(vocab_size=len(tokenizer), pad_token_id=0, eos_token_id=0, bos_token_id=0, **SMALL))
    denoiser = CogView4Transformer2DModel(
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        text_embed_dim=WIDTH,
        time_embed_dim=16,
        condition_dim=8,
        sample_size=8,
        rope_axes_dim=(16, 16),
    )
    shift = {"base_shift": 0.25, "max_shift": 0.75, "use_dynamic_shifting": True, "time_shift_type": "linear"}
    vae = autoencoder(16, scaling_factor=1.0, use_quant_conv=False, use_post_quant_conv=False)
    return CogView4Pipeline(tokenizer, text, vae, denoiser, FlowMatchEulerDiscreteScheduler(**{**shift, **schedule}))


MAKERS: dict[str, Callable[..., Any]] = {
    "sd": stable_diffusion,
    "sd2": stable_diffusion_2,
    "sdxl": stable_diffusion_xl,
    "kolors": kolors,
    "pixart": pixart,
    "sd3": stable_diffusion_3,
    "flux": flux,
    "z_image": z_image,
    "qwen_image": qwen_image,
    "chroma": chroma,
    "lumina2": lumina2,
    "cogview4": cogview4,
    "flux2": flux2,
    "sana": sana,
    "krea2": krea2,
    "ernie_image": ernie_image,
    "flux_kontext": flux_kontext,
    "qwen_image_edit": qwen_image_edit,
    "hidream": hidream,
    "ovis_image": ovis_image,
}

# One of every form that a family takes: (kind, options).
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "sd": ("sd", {}),
    "sd2": ("sd2", {}),
    "sdxl": ("sdxl", {}),
    "playground": ("sdxl", {"playground": True}),
    "kolors": ("kolors", {}),
    "pixart-sigma": ("pixart", {}),
    "pixart-alpha": ("pixart", {"alpha": True}),
    "pixart-alpha-1024": ("pixart", {"alpha": True, "use_additional_conditions": True}),
    "sd3": ("sd3", {}),
    "sd3-4-channels-no-t5": ("sd3", {"channels": 4, "absent": ["text_encoder_3"]}),
    "flux-dev": ("flux", {}),
    "flux-schnell": ("flux", {"schnell": True}),
    "z-image": ("z_image", {}),
    "qwen-image": ("qwen_image", {}),
    "chroma": ("chroma", {}),
    "lumina-2": ("lumina2", {}),
    "cogview4": ("cogview4", {}),
    "flux2-klein": ("flux2", {}),
    "flux2-dev": ("flux2", {"dev": True}),
    "sana": ("sana", {}),
    "krea2": ("krea2", {}),
    "ernie-image": ("ernie_image", {}),
    "flux-kontext": ("flux_kontext", {}),
    "qwen-image-edit": ("qwen_image_edit", {}),
    "qwen-image-edit-plus": ("qwen_image_edit", {"plus": True}),
    "hidream": ("hidream", {}),
    "ovis-image": ("ovis_image", {}),
}
FIRSTS = tuple({kind: name for name, (kind, _) in reversed(MODELS.items())}.values())  # the first form of each family


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
    if kind == "hidreamimage":  # which takes any size for a shape alone, of pictures as large as this
        area = options.get("height", SIDE) * options.get("width", SIDE)
        pipe.default_sample_size = area**0.5 / pipe.vae_scale_factor + 1e-6
    generator = torch.Generator().manual_seed(seed)
    options = {**DRAWN.get(kind, {}), **with_picture(pipe, prompt), **options}
    if "max_area" in options:  # Kontext's, by which it takes height and width as a ratio
        options["max_area"] = options["height"] * options["width"]
    return pipe(prompt=prompt, num_inference_steps=steps, generator=generator, output_type="np", **options).images
