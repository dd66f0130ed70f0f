"""The keys of LoRA files that a run goes on from, or has in its base, against other keys. Nothing here imports torch or reads a file."""

from __future__ import annotations

from diffalign.core.errors import ConfigError
from diffalign.methods.base import Method
from diffalign.methods.config import TrainConfig


def check_lora_keys(config: TrainConfig, method: Method, tuning: str) -> None:
    """Raise ConfigError where LoRA files are not meant together with other keys."""
    if config.start_from_lora is not None:
        if config.start_from is not None:
            raise ConfigError("`start_from` and `start_from_lora` both say what goes on; leave one of them out")
        if tuning not in ("lora", "dora") or method.inference != "plain":
            why = f"`train_method` is {tuning}" if tuning not in ("lora", "dora") else f"`{config.method}` learns what is subtracted"
            raise ConfigError(f"`start_from_lora` trains the adapter of a file further, and {why}; fuse it with `base_lora` instead")
    if config.base_lora and config.quantization is not None:
        raise ConfigError("`base_lora` is added to weights as they are, and `quantization` stores them otherwise; leave one of them out")
    if config.base_lora and tuning == "full" and method.inference == "negative_guidance":
        raise ConfigError(
            f"`base_lora`: `{config.method}` of all weights keeps their difference from the plain base; set train_method lora"
        )
    if config.generate and (config.base_lora or config.start_from_lora):
        name = "base_lora" if config.base_lora else "start_from_lora"
        raise ConfigError(f"`{name}`: rounds (`generate`) draw with the model as it lies on disk, without it; train without rounds")
