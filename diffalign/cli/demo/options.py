"""The flags of the demonstrations, as dataclasses."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class QuickstartConfig:
    """See the whole loop on a small embedded Stable Diffusion: about five minutes on two cores, no GPU, no download."""

    output_dir: str = "outputs/quickstart"
    """Folder for pairs, weights and report."""
    model: str = "assets/tiny-sd"
    """The embedded model: assets/tiny-sd (a UNet), or assets/tiny-sd3 (a flow-matching transformer)."""
    taste: str = "high"
    """What the simulated voter likes: high (near the top), centred, warm, large, bright_background, contrast or bright_shape."""
    temperature: float = 0.0
    """How often the voter errs (Bradley-Terry); 0 never."""
    method: str = "diffusion_dpo"
    """Preference method."""
    train_prompts: int = 336
    """Prompts to make pairs for."""
    images_per_prompt: int = 2
    """Pictures of each prompt; neighbours are voted on."""
    eval_prompts: int = 200
    """Prompts not trained on, to judge with."""
    beta: float | None = None
    """Beta of the objective; 500 for Diffusion-DPO, the method's own for others."""
    learning_rate: float = 1e-3
    """Learning rate."""
    rank: int = 8
    """Rank of the LoRA adapter."""
    max_train_steps: int = 300
    """Optimiser steps."""
    train_batch_size: int = 32
    """Pairs a step."""
    num_inference_steps: int = 25
    """Solver steps of every picture."""
    guidance_scale: float = 4.0
    """Guidance of every picture."""
    seed: int = 0
    """Seed of prompts, pictures, votes and training."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TextQuickstartConfig:
    """See the loop for the model that writes prompts: it rewrites short ones, an image model draws them, a taste chooses, Sem-DPO
    trains. About five minutes on two cores, no GPU, no download."""

    output_dir: str = "outputs/quickstart_text"
    """Folder for pairs, weights and report."""
    model: str = "assets/tiny-lm"
    """The language model, a chat model that rewrites short prompts."""
    image_model: str = "assets/tiny-sd"
    """The image model that draws; it is not trained."""
    taste: str = "high"
    """What the simulated voter likes: high (near the top), centred, warm, large, bright_background, contrast or bright_shape."""
    distance: str = "attributes"
    """Distance of meaning between a short prompt and its rewrite: attributes (the share lost, by the embedded world's grammar), or the
    folder or hub id of a sentence encoder (one minus the cosine)."""
    alpha: float = 5.0
    """Sem-DPO's weight of a pair is exp(-alpha * distance of the preferred rewrite); 0 is plain DPO."""
    train_prompts: int = 256
    """Short prompts to make pairs for."""
    rewrites_per_prompt: int = 4
    """Rewrites sampled for each; best and worst make the pair."""
    min_gap: float = 0.1
    """Least difference in taste, in [0, 1], of a pair that is trained on."""
    eval_prompts: int = 200
    """Short prompts not trained on, to judge with."""
    beta: float = 1.0
    """Beta of DPO; multiplies nats."""
    learning_rate: float = 2e-4
    """Learning rate."""
    rank: int = 8
    """Rank of the LoRA adapter."""
    max_train_steps: int = 150
    """Optimiser steps, of each of the two runs: with the weight and without."""
    train_batch_size: int = 32
    """Pairs a step."""
    num_inference_steps: int = 8
    """Solver steps of every picture."""
    guidance_scale: float = 4.0
    """Guidance of every picture."""
    seed: int = 0
    """Seed of prompts, rewrites, pictures and training."""
