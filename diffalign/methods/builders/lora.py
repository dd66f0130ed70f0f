"""LoRA files that a run goes on from, or that are part of its base: what the config says of them, read and checked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peft import LoraConfig

from diffalign.core.errors import ConfigError
from diffalign.core.keys import changed
from diffalign.methods.config import TrainConfig
from diffalign.methods.recipe import Recipe, tuning_of
from diffalign.models.adapter_files import AdapterFile
from diffalign.models.backbones.base_lora import BaseLora, check_fit
from diffalign.models.backbones.table import component_of, lora_adapters


def base_loras(config: TrainConfig) -> list[BaseLora]:
    """Return the LoRA files that are part of the base. Raises ConfigError or CheckpointError as `BaseLora.of`."""
    return [BaseLora.of(text) for text in config.base_lora]


def check_base_loras(config: TrainConfig, pipe: Any) -> None:
    """Raise CheckpointError for a LoRA file that is made for another model than that of `pipe`, which has no numbers."""
    for lora in base_loras(config):
        for part, adapter in lora_adapters(lora.file, pipe).items():
            check_fit(getattr(pipe, part), adapter)


def check_quantised(config: TrainConfig, recipe: Recipe) -> None:
    """Raise ConfigError for what changes the weights of a denoiser whose file is quantised."""
    if recipe.tuning not in ("lora", "user"):
        raise ConfigError(
            f"`denoiser`: {config.denoiser} is quantised, and `train_method` is {recipe.tuning}, which needs the weights "
            "themselves: set it to lora"
        )
    if config.base_lora:
        raise ConfigError(
            f"`base_lora` is fused into the weights, and those of `denoiser` {config.denoiser} are quantised; give a file of fp16 or bf16, "
            "or go on from the LoRA with `start_from_lora`"
        )


def start_adapter(config: TrainConfig, pipe: Any) -> AdapterFile:
    """Return the adapter of the denoiser that `start_from_lora` goes on from.

    Raises ConfigError for keys that contradict the file, and where it also has layers of text encoders; CheckpointError as `read_lora`.
    """
    parts, component = lora_adapters(Path(str(config.start_from_lora)), pipe), component_of(pipe)
    adapter = parts.pop(component)
    if parts:
        raise ConfigError(
            f"`start_from_lora`: {adapter.file} also has layers of {' and '.join(parts)}, which are not trained, so that they would be "
            "lost; fuse the file with `base_lora`, or remove these layers from it"
        )
    _check_contradictions(config, adapter)
    return adapter


def _check_contradictions(config: TrainConfig, adapter: AdapterFile) -> None:
    """Raise ConfigError for keys that are given and say of the adapter what its file does not."""
    written, lora = set(changed(config)), adapter.config
    own, kind = tuning_of(config), "dora" if lora.use_dora else "lora"
    if own != kind:
        raise ConfigError(f"`train_method` is {own}, and `start_from_lora` {adapter.file} is an adapter of the kind {kind}")
    there = {"rank": _numbers(lora, "r", lora.rank_pattern), "lora_alpha": _numbers(lora, "lora_alpha", lora.alpha_pattern)}
    there |= {"lora_layers": sorted(lora.target_modules or ())}
    for name, value in there.items():
        given = getattr(config, name)
        if name in written and (sorted(given) if name == "lora_layers" else [float(given)]) != value:
            shown = ", ".join(map(str, value[:4])) + (", ..." if len(value) > 4 else "")
            raise ConfigError(f"`{name}` is {given}, and that of `start_from_lora` {adapter.file} is {shown}; leave it out")


def _numbers(lora: LoraConfig, name: str, pattern: Any) -> list[float]:
    """Return the different ranks, or alphas, of an adapter's layers."""
    return sorted({float(getattr(lora, name)), *map(float, (pattern or {}).values())})
