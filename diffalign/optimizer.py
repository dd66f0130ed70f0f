"""The optimisers of the published recipes: AdamW, its 8-bit form, and Adafactor with a fixed learning rate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from diffalign.config import TrainConfig


def make_optimizer(config: TrainConfig, parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
    """Return the optimiser of `config` over `parameters`."""
    if config.use_adafactor:
        from transformers import Adafactor

        fixed = {"scale_parameter": False, "relative_step": False, "clip_threshold": 1.0}  # as the Diffusion-DPO release sets it
        return Adafactor(parameters, lr=config.learning_rate, weight_decay=config.adam_weight_decay, **fixed)
    kind: Any = torch.optim.AdamW
    if config.use_8bit_adam:
        import bitsandbytes  # pyright: ignore[reportMissingImports]  # optional; its presence was checked with the config

        kind = bitsandbytes.optim.AdamW8bit
    return kind(
        parameters,
        lr=config.learning_rate,
        betas=(config.adam_beta1, config.adam_beta2),
        weight_decay=config.adam_weight_decay,
        eps=config.adam_epsilon,
    )
