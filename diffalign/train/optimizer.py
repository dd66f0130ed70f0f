"""The optimisers of the published recipes: AdamW, its 8-bit and paged forms, and Adafactor with a fixed learning rate."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from diffalign.methods.config import TrainConfig


def make_optimizer(config: TrainConfig, parameters: Sequence[nn.Parameter] | list[dict[str, Any]]) -> torch.optim.Optimizer:
    """Return the optimiser of `config` over `parameters`, or groups of them that may have rates and decays of their own."""
    if config.optimizer_name == "adafactor":
        from transformers import Adafactor

        fixed = {"scale_parameter": False, "relative_step": False, "clip_threshold": 1.0}  # as the Diffusion-DPO release sets it
        return Adafactor(parameters, lr=config.learning_rate, weight_decay=config.adam_weight_decay, **fixed)
    return _adamw(config.optimizer_name)(
        parameters,
        lr=config.learning_rate,
        betas=(config.adam_beta1, config.adam_beta2),
        weight_decay=config.adam_weight_decay,
        eps=config.adam_epsilon,
    )


def _adamw(name: str) -> Any:
    """Return the class of an AdamW; packages are optional, and their presence was checked with the config."""
    if name == "adamw":
        return torch.optim.AdamW
    if importlib.util.find_spec("bitsandbytes") is None:
        from torchao.optim import AdamW8bit  # pyright: ignore[reportMissingImports]

        return AdamW8bit
    from bitsandbytes import optim  # pyright: ignore[reportMissingImports]

    return {"adamw_8bit": optim.AdamW8bit, "paged_adamw_8bit": optim.PagedAdamW8bit}[name]
