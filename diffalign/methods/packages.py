"""Optional packages, and the memory and speed switches that need them. Nothing here imports torch or the packages."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from typing import TYPE_CHECKING

from diffalign.core.errors import ConfigError, check_name
from diffalign.methods.recipe import tuning_of

if TYPE_CHECKING:
    from diffalign.methods.config import TrainConfig

# Packages by their import name, and how to get them.
PIP = {name: f"pip install {name}" for name in ("bitsandbytes", "torchao", "xformers", "kernels")}
PIP["flash_attn"] = "pip install flash-attn --no-build-isolation"
PIP["flash_attn_interface"] = "build FlashAttention-3 from the folder `hopper` of its repository"
OPTIMIZERS = {"adamw_8bit": ("bitsandbytes", "torchao"), "paged_adamw_8bit": ("bitsandbytes",)}
QUANTIZATIONS = {"nf4": "bitsandbytes", "int8": "torchao", "fp8": "torchao"}
# The backends of diffusers' attention dispatcher that have a backward pass, with the package each needs.
ATTENTION: dict[str, str | None] = dict.fromkeys(("native", "_native_cudnn", "_native_efficient", "_native_flash", "_native_math", "flex"))
ATTENTION |= {"xformers": "xformers", "flash": "flash_attn", "flash_varlen": "flash_attn", "_flash_varlen_3": "flash_attn_interface"}
ATTENTION |= dict.fromkeys(("flash_hub", "flash_varlen_hub", "flash_4_hub", "_flash_3_hub", "_flash_3_varlen_hub"), "kernels")
# Those without: quantised attention, and kernels that diffusers wraps for inference alone. Training with them would teach nothing.
FORWARD_ONLY = ("sage", "sage_hub", "sage_blackwell_hub", "sage_varlen", "_sage_qk_int8_pv_fp8_cuda", "_sage_qk_int8_pv_fp8_cuda_sm90")
FORWARD_ONLY += ("_sage_qk_int8_pv_fp16_cuda", "_sage_qk_int8_pv_fp16_triton", "_flash_3", "aiter_fa2_hub")


def check_switches(config: TrainConfig) -> None:
    """Check what excludes what among memory and speed switches, and ask for optional packages."""
    if config.use_8bit_adam and config.optimizer not in ("adamw", "adamw_8bit"):
        raise ConfigError(f"`use_8bit_adam` and `optimizer: {config.optimizer}` are both set; choose one")
    if config.enable_xformers_memory_efficient_attention and config.attention_backend not in (None, "xformers"):
        raise ConfigError(
            f"`enable_xformers_memory_efficient_attention` and `attention_backend: {config.attention_backend}` are both set; choose one"
        )
    if config.quantization is not None and tuning_of(config) not in ("lora", "user"):
        raise ConfigError(
            f"`quantization` is of a frozen base; `train_method` is {tuning_of(config)}, which needs the weights themselves: set it to lora"
        )
    _check_packages(config)


def _check_packages(config: TrainConfig) -> None:
    """Ask for optional packages before anything is read."""
    _installed(f"optimizer: {config.optimizer_name}", OPTIMIZERS.get(config.optimizer_name, ()))
    if config.quantization is not None:
        _installed(f"quantization: {config.quantization}", (QUANTIZATIONS[config.quantization],))
    if (name := config.attention_name) is not None:
        if name in FORWARD_ONLY:
            raise ConfigError(f"`attention_backend` is {name!r}, which has no backward pass: it is for inference alone")
        check_name("attention_backend", name, (*ATTENTION, "sdpa"))
        _installed(f"attention_backend: {name}", filter(None, (ATTENTION[name],)))
    if config.report_to is not None and importlib.util.find_spec(config.report_to) is None:
        raise ConfigError(f"`report_to` is {config.report_to!r}, which is not installed; expected a tracker such as tensorboard")


def _installed(setting: str, packages: Iterable[str]) -> None:
    """Raise ConfigError if none of `packages` is there, though the setting needs one."""
    names = list(packages)
    if names and all(importlib.util.find_spec(name) is None for name in names):
        raise ConfigError(f"`{setting}` needs {' or '.join(names)}: {PIP[names[0]]}")
