"""Random models of the latest families, as those of `tests.micro_models`: FLUX.2, SANA, Krea 2, ERNIE-Image, HiDream-I1, Kolors, Ovis."""

from __future__ import annotations

import inspect
from typing import Any

from diffusers import (
    DPMSolverMultistepScheduler,
    ErnieImagePipeline,
    ErnieImageTransformer2DModel,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Pipeline,
    Flux2Transformer2DModel,
    HiDreamImagePipeline,
    HiDreamImageTransformer2DModel,
    Krea2Pipeline,
    Krea2Transformer2DModel,
    OvisImagePipeline,
    OvisImageTransformer2DModel,
    SanaPipeline,
    SanaTransformer2DModel,
)
from transformers import CLIPTextModelWithProjection, LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from tests.micro_parts import (
    CHAT,
    QWEN_TEMPLATE,
    SMALL,
    WIDTH,
    autoencoder,
    chatglm,
    chatglm_tokenizer,
    clip,
    clip_tokenizer,
    compressing_autoencoder,
    film_autoencoder,
    flux_autoencoder,
    gemma,
    gemma_tokenizer,
    glm_tokenizer,
    mistral,
    patch_autoencoder,
    pixtral_processor,
    qwen3,
    qwen3_vl,
    qwen_tokenizer,
    t5,
    t5_tokenizer,
    unet,
    worded_qwen_tokenizer,
)


def flux2(dev: bool = False, **schedule: Any) -> Any:
    """Return a FLUX.2 klein, or dev, which is told a guidance scale.

    Klein's prompts are read from the layers 9, 18 and 27 of its language model, dev's from 10, 20 and 30, as their pipelines do.
    """
    tokenizer = pixtral_processor() if dev else qwen_tokenizer()
    text = (
        mistral(tokenizer.tokenizer, layers=30)
        if dev
        else Qwen3ForCausalLM(Qwen3Config(**{**SMALL, "vocab_size": len(tokenizer), "num_hidden_layers": 28}))
    )
    denoiser = Flux2Transformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=3 * WIDTH,
        axes_dims_rope=(2, 2, 2, 2),
        guidance_embeds=dev,
    )
    scheduler = FlowMatchEulerDiscreteScheduler(**{"use_dynamic_shifting": True, **schedule})
    return (Flux2Pipeline if dev else Flux2KleinPipeline)(scheduler, patch_autoencoder(), text, tokenizer, denoiser)


def sana(**schedule: Any) -> Any:
    """Return a SANA, with a solver that is not Euler's."""
    instruction = inspect.signature(SanaPipeline.__call__).parameters["complex_human_instruction"].default
    tokenizer = gemma_tokenizer("\n".join(instruction))
    denoiser = SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=WIDTH,
        sample_size=8,
    )
    flow = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}
    return SanaPipeline(
        tokenizer, gemma(tokenizer), compressing_autoencoder(), denoiser, DPMSolverMultistepScheduler(**{**flow, **schedule})
    )


def krea2(**schedule: Any) -> Any:
    """Return a Krea 2 that reads three layers of its language model."""
    tokenizer = worded_qwen_tokenizer(QWEN_TEMPLATE)
    denoiser = Krea2Transformer2DModel(
        in_channels=16,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=16,
        timestep_embed_dim=16,
        text_hidden_dim=WIDTH,
        num_text_layers=3,
        text_num_attention_heads=2,
        text_num_key_value_heads=2,
        text_intermediate_size=16,
        num_layerwise_text_blocks=1,
        num_refiner_text_blocks=1,
        axes_dims_rope=(2, 2, 4),
    )
    scheduler = FlowMatchEulerDiscreteScheduler(**{"use_dynamic_shifting": True, "max_image_seq_len": 6400, **schedule})
    return Krea2Pipeline(scheduler, film_autoencoder(), qwen3_vl(tokenizer), tokenizer, denoiser, text_encoder_select_layers=(0, 1, 2))


def ernie_image(**schedule: Any) -> Any:
    """Return an ERNIE-Image without the model that rewrites prompts."""
    tokenizer = glm_tokenizer()
    denoiser = ErnieImageTransformer2DModel(
        hidden_size=16,
        num_attention_heads=2,
        num_layers=2,
        ffn_hidden_size=16,
        in_channels=16,
        out_channels=16,
        text_in_dim=WIDTH,
        rope_axes_dim=(2, 2, 4),
    )
    scheduler = FlowMatchEulerDiscreteScheduler(**{"shift": 3.0, **schedule})
    return ErnieImagePipeline(denoiser, patch_autoencoder(), mistral(tokenizer), tokenizer, scheduler)


def hidream(**schedule: Any) -> Any:
    """Return a HiDream-I1 with two routed experts to a token, of three, and pictures of 64 tokens at most."""
    tokenizers = clip_tokenizer(length=128), clip_tokenizer(pad="!", length=128), t5_tokenizer(), qwen_tokenizer()
    clips = (clip(CLIPTextModelWithProjection, tokenizer) for tokenizer in tokenizers[:2])
    llama = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizers[3]), **SMALL, attn_implementation="eager"))
    denoiser = HiDreamImageTransformer2DModel(
        patch_size=2,
        in_channels=16,
        out_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_channels=[WIDTH, WIDTH],
        text_emb_dim=2 * WIDTH,
        num_routed_experts=3,
        axes_dims_rope=(4, 2, 2),
        max_resolution=(16, 16),
        llama_layers=[0, 1],
    )
    encoders = [part for pair in zip((*clips, t5(tokenizers[2]), llama), tokenizers, strict=True) for part in pair]
    return HiDreamImagePipeline(FlowMatchEulerDiscreteScheduler(**{"shift": 3.0, **schedule}), flux_autoencoder(), *encoders, denoiser)


def kolors(**schedule: Any) -> Any:
    """Return a Kolors, whose UNet projects the states of its language model, with 1100 times."""
    from diffusers import KolorsPipeline  # which imports what PyTorch warns of

    tokenizer = chatglm_tokenizer()
    denoiser = unet(
        "DownBlock2D",
        "CrossAttnDownBlock2D",
        cross_attention_dim=2 * WIDTH,
        encoder_hid_dim=WIDTH,
        encoder_hid_dim_type="text_proj",
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=WIDTH + 6 * 8,
    )
    config = {"beta_start": 0.00085, "beta_end": 0.014, "beta_schedule": "scaled_linear", "num_train_timesteps": 1100, "steps_offset": 1}
    scheduler = EulerDiscreteScheduler(**{**config, "timestep_spacing": "leading", **schedule})
    return KolorsPipeline(autoencoder(scaling_factor=0.13025), chatglm(tokenizer), tokenizer, denoiser, scheduler)


def ovis_image(**schedule: Any) -> Any:
    """Return an Ovis-Image, whose times are shifted by the tokens of a picture."""
    tokenizer = worded_qwen_tokenizer(
        "user\nDescribe the image by detailing the color, quantity, text, shape, size, texture, spatial relationships of the objects and "
        "background: assistant"
    )
    tokenizer.chat_template = CHAT
    denoiser = OvisImageTransformer2DModel(
        in_channels=64,
        out_channels=64,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        axes_dims_rope=(2, 2, 4),
    )
    scheduler = FlowMatchEulerDiscreteScheduler(**{"use_dynamic_shifting": True, **schedule})
    return OvisImagePipeline(scheduler, flux_autoencoder(), qwen3(tokenizer), tokenizer, denoiser)
