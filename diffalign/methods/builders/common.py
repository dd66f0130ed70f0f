"""What the builders of all kinds share: precisions, where caches lie, and the order of the records."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import torch

from diffalign.core.parts import Index
from diffalign.core.specs import bind
from diffalign.data.curriculum import CURRICULA, Stages
from diffalign.data.table import CACHE
from diffalign.data.view import View
from diffalign.methods.config import TrainConfig

DTYPES = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def cache_root(config: TrainConfig, view: View) -> Path:
    """Return the folder that caches lie in."""
    return Path(config.cache_dir) if config.cache_dir else view.table.path / CACHE


def order(config: TrainConfig, view: View) -> Callable[[int], Index] | None:
    """Return which record a sample is, where the config gives the training an order. Raises as the curriculum does."""
    if config.curriculum is None:
        return None
    stages = bind("curriculum", CURRICULA, config.curriculum)(view)
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    samples = config.max_train_steps * config.train_batch_size * config.gradient_accumulation_steps * processes
    return Stages(stages, samples, config.seed).index


def cache_precision(config: TrainConfig) -> str:
    """Return the precision of latents and prompt embeddings on disk: as chosen, else that which a bfloat16 model reads anyway."""
    return config.cache_precision or ("bfloat16" if config.mixed_precision == "bf16" else "float32")


def filling_workers(config: TrainConfig, device: torch.device) -> int:
    """Return how many processes decode pictures while a cache is filled: as chosen, else none on a CPU, and for a GPU up to eight."""
    if config.dataloader_num_workers or device.type == "cpu":
        return config.dataloader_num_workers
    return min(8, max(0, (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")) - 1))
