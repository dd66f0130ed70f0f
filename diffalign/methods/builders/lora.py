"""LoRA files that a run goes on from, or that are part of its base: what the config says of them, read and checked."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig

from diffalign.core.errors import ConfigError
from diffalign.core.keys import changed
from diffalign.methods.config import TrainConfig
from diffalign.methods.recipe import Recipe, tuning_of
from diffalign.models import adapters
from diffalign.models.adapter_files import AdapterFile
from diffalign.models.backbones.base import Backbone
from diffalign.models.backbones.base_lora import BaseLora, check_fit
from diffalign.models.backbones.table import component_of, lora_adapters
from diffalign.models.prompted import LORA_TARGETS


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


def add_adapters(config: TrainConfig, recipe: Recipe, model: Backbone) -> None:
    """Add new adapters, or those of `start_from_lora`, to a denoiser and, where they are trained, to its text encoders.

    A text encoder that the file has nothing for gets a new one, of the rank and alpha of the denoiser's; layers of an encoder that the
    denoiser does not read get none, and lose that of the file. Raises as `_start_adapters`.
    """
    pipe, targets = model.pipeline(whole=False), {model.component: config.lora_layers or model.lora_targets}
    read = model.read_layers() if config.train_text_encoder else {}
    targets |= {
        part: [f"layers.{number}.self_attn.{name}" for number in range(count) for name in LORA_TARGETS] for part, count in read.items()
    }
    start = {} if config.start_from_lora is None else _start_adapters(config, pipe, targets)
    own = start[model.component].config if start else None
    rank, alpha = (config.rank, config.lora_alpha) if own is None else (own.r, own.lora_alpha)
    torch.manual_seed(config.seed)
    for part, layers in targets.items():
        if part in start:
            adapter = start[part].up_to(read[part]) if part in read else start[part]
            adapters.add_adapter(getattr(pipe, part), adapter, config.lora_dropout)
        else:
            how = {"rank": rank, "alpha": alpha, "dropout": config.lora_dropout, "dora": recipe.tuning == "dora"}
            adapters.add_lora(getattr(pipe, part), targets=layers, **how)
    if config.train_text_encoder:
        model.train_text_encoders()


def _start_adapters(config: TrainConfig, pipe: Any, trained: Collection[str]) -> dict[str, AdapterFile]:
    """Return the adapters that `start_from_lora` goes on from, of the denoiser and of text encoders.

    Raises ConfigError for keys that contradict the file, and where it also has layers that are not `trained`; CheckpointError as
    `read_lora`.
    """
    parts = lora_adapters(Path(str(config.start_from_lora)), pipe)
    adapter = parts[component_of(pipe)]
    if lost := [part for part in parts if part not in trained]:
        raise ConfigError(
            f"`start_from_lora`: {adapter.file} also has layers of {' and '.join(lost)}, which are not trained, so that they would be "
            "lost; set train_text_encoder, fuse the file with `base_lora`, or remove these layers from it"
        )
    _check_contradictions(config, adapter)
    return parts


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
