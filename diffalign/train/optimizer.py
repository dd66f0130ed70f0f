"""The optimisers of the published recipes (AdamW, its 8-bit and paged forms, Adafactor with a fixed learning rate), their schedules, and
the moving average of what they train."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch import nn

from diffalign.methods.config import TrainConfig
from diffalign.methods.packages import is_installed
from diffalign.train.rounding import StochasticRounding


def make_optimizer(config: TrainConfig, parameters: Sequence[nn.Parameter] | list[dict[str, Any]]) -> torch.optim.Optimizer:
    """Return the optimiser of `config` over `parameters`, or groups of them that may have rates and decays of their own."""
    made = _plain_optimizer(config, parameters)
    return StochasticRounding(made, config.seed) if config.full_bf16 else made


def _plain_optimizer(config: TrainConfig, parameters: Sequence[nn.Parameter] | list[dict[str, Any]]) -> torch.optim.Optimizer:
    if config.optimizer_name == "adafactor":
        from transformers import Adafactor

        fixed = {"scale_parameter": False, "relative_step": False, "clip_threshold": 1.0}  # as the Diffusion-DPO release sets it
        return Adafactor(parameters, lr=config.learning_rate, weight_decay=config.adam_weight_decay, **fixed)
    # In one kernel on a GPU; but with the scaler of fp16 such an optimiser skips an overflow by itself, and nobody would count it.
    flat = [p for part in parameters for p in (part["params"] if isinstance(part, dict) else [part])]
    fuses = config.optimizer_name == "adamw" and config.mixed_precision != "fp16" and all(p.is_cuda for p in flat)
    return _adamw(config.optimizer_name)(
        parameters,
        lr=config.learning_rate,
        betas=(config.adam_beta1, config.adam_beta2),
        weight_decay=config.adam_weight_decay,
        eps=config.adam_epsilon,
        **({"fused": True} if fuses else {}),
    )


def make_schedule(config: TrainConfig, optimizer: torch.optim.Optimizer) -> Any:
    """Return the schedule of the learning rate. It is not prepared: accelerate would step it once for each process."""
    return get_scheduler(config.lr_scheduler, optimizer, num_warmup_steps=config.lr_warmup_steps, num_training_steps=config.max_train_steps)


def restore_optimizer(optimizer: Any, schedule: Any, state: Mapping[str, Any]) -> None:
    """Take over a checkpoint's moments and step; rates, decays and betas are those that the optimiser was made with now."""
    wanted = [
        {name: group[name] for name in ("initial_lr", "weight_decay", "betas", "eps") if name in group} for group in optimizer.param_groups
    ]
    optimizer.load_state_dict(state["optimizer"])
    schedule.load_state_dict(state["schedule"])
    schedule.base_lrs = [group["initial_lr"] for group in wanted]
    for group, own, factor in zip(optimizer.param_groups, wanted, schedule.lr_lambdas, strict=True):
        group.update(own, lr=own["initial_lr"] * factor(schedule.last_epoch))
    schedule._last_lr = [group["lr"] for group in optimizer.param_groups]  # which a schedule says until its next step


def make_average(config: TrainConfig, parameters: Sequence[nn.Parameter], *, drives: bool) -> EMAModel | None:
    """Return the moving average of `parameters`, if it is saved or drives the trajectory.

    As a driver it follows at its decay from the first step (the release of Self-NPO), without diffusers' warm-up.
    """
    plain = {"min_decay": config.ema_decay, "update_after_step": -1} if drives else {}
    return EMAModel(parameters, decay=config.ema_decay, **plain) if config.use_ema or drives else None


def _adamw(name: str) -> Any:
    """Return the class of an AdamW; packages are optional, and their presence was checked with the config."""
    if name == "adamw":
        return torch.optim.AdamW
    if not is_installed(["bitsandbytes"]):
        from torchao.optim import AdamW8bit  # pyright: ignore[reportMissingImports]  # optional

        return AdamW8bit
    from bitsandbytes import optim  # pyright: ignore[reportMissingImports]  # optional

    return {"adamw_8bit": optim.AdamW8bit, "paged_adamw_8bit": optim.PagedAdamW8bit}[name]
