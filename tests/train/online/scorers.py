"""Scorers of made pictures for online training, and the config that its tests begin with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from diffalign.methods.config import TrainConfig

PROMPTS = ["a red star", "a green heart", "a blue circle"]


class Bright:
    """Scores the mean of an image."""

    name, unit, scale, licence, max_tokens, revision = "bright", "share", "mean in [0, 1]", "Apache-2.0", None, None

    def __call__(self, images, prompts):
        return np.array([np.asarray(image).mean() / 255.0 for image in images], dtype=np.float64)


class Dark(Bright):
    """Scores how dark an image is."""

    name = "dark"

    def __call__(self, images, prompts):
        return 1.0 - super().__call__(images, prompts)


class Constant(Bright):
    """Scores all images alike, but for noise."""

    def __init__(self, noise: float = 0.0, after: int = 0) -> None:
        self.noise, self.after, self.calls = noise, after, 0

    def __call__(self, images, prompts):
        self.calls += 1
        if self.calls <= self.after:
            return super().__call__(images, prompts)
        return 0.5 + self.noise * np.random.default_rng(0).standard_normal(len(images))


def online_config(model: Path, folder: Path, **changed: Any) -> TrainConfig:
    """Return the config of two turns of two updates, on a micro model."""
    options: dict[str, Any] = {
        "method": "rank_dpo",
        "beta": 100.0,
        "learning_rate": 1e-2,
        "rank": 2,
        "reference": "old_policy",
        "prompts": PROMPTS,
        "scorers": ["bright"],
        "images_per_prompt": 3,
        "prompts_per_turn": 2,
        "updates_per_turn": 2,
        "num_inference_steps": 2,
        "train_batch_size": 2,
        "max_train_steps": 4,
        "checkpointing_steps": 1,
        "checkpoints_total_limit": 1,
    }
    return TrainConfig(pretrained_model_name_or_path=str(model), output_dir=str(folder), **(options | changed))
