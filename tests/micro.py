"""Models and data small enough for a test to train: a random Stable Diffusion of 20,000 numbers, and pairs of drawings."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from diffalign.shapes.captions import VOCABULARY, random_caption
from diffalign.shapes.scenes import random_scene, render


def write_micro_sd(folder: Path, **schedule: Any) -> Path:
    """Write a random Stable Diffusion (32 px, factor 4) in diffusers layout; keywords go into the scheduler's config."""
    torch.manual_seed(0)
    empty = CLIPTokenizer(vocab={"<|startoftext|>": 0, "<|endoftext|>": 1}, merges=[])
    tokenizer = empty.train_new_from_iterator([" ".join(VOCABULARY)] * 10, vocab_size=600, show_progress=False)
    tokenizer.model_max_length = 12
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=12,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=1,
        )
    )
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 8, 8),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=32,
    )
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=16,
        attention_head_dim=2,
        norm_num_groups=4,
    )
    config = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False, "steps_offset": 1}
    scheduler = DDIMScheduler(**{**config, "set_alpha_to_one": False, **schedule})
    StableDiffusionPipeline(vae, text, tokenizer, unet, scheduler, None, None, requires_safety_checker=False).save_pretrained(folder)
    return folder


def write_pairs(path: Path, count: int = 24, side: int = 40, label: float | None = None, seed: int = 0) -> Path:
    """Write pairs of drawings in Pick-a-Pic's columns; labels alternate unless given. Drawings are larger than the model's 32 px."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(count):
        scenes = [random_scene(rng, shape="star") for _ in range(2)]
        images = []
        for scene in scenes:
            buffer = io.BytesIO()
            render(scene, rng).resize((side, side + 8 * (i % 2))).save(buffer, "PNG")
            images.append(buffer.getvalue())
        first = float(i % 2) if label is None else label
        prompt = random_caption(scenes[0], rng)
        rows.append({"caption": prompt, "jpg_0": images[0], "jpg_1": images[1], "label_0": first, "label_1": 1.0 - first})
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path
