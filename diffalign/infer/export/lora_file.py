"""What an adapter adds to each weight, and the LoRA file that ComfyUI and kohya's scripts read."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig
from peft.utils.other import get_pattern_key
from torch import Tensor

from diffalign.core.errors import CheckpointError, ConfigError
from diffalign.infer.export.keys import Place, file_key, place
from diffalign.models.adapter_files import AdapterFile
from diffalign.models.backbones.table import BACKBONES


@dataclass(frozen=True, slots=True, eq=False)
class Update:
    """What an adapter adds to one weight: scale * up @ down; down (r, in, ...), up (out, r, ...)."""

    down: Tensor
    up: Tensor
    scale: float


def updates(adapter: AdapterFile) -> dict[str, Update]:
    """Return the update of every layer of the denoiser. Raises ConfigError for DoRA, CheckpointError for anything else but LoRA."""
    if adapter.config.use_dora:
        raise ConfigError(
            f"{adapter.file}: a DoRA adapter; it is no sum of weights, and other programs weigh it differently, so there is no ComfyUI "
            "file of it: choose --formats diffusers merged"
        )
    ups = [name for name in adapter.tensors if name.endswith(".lora_B.weight")]
    pairs = {*ups, *(name.replace(".lora_B.", ".lora_A.") for name in ups)}
    if odd := sorted(adapter.tensors.keys() ^ pairs):
        raise CheckpointError(f"{adapter.file}: `{odd[0]}` is no half of a LoRA update; expected pairs of lora_A and lora_B")
    layers = {}
    for name in ups:
        layer = name.removeprefix(adapter.prefix).removesuffix(".lora_B.weight")
        down = adapter.tensors[name.replace(".lora_B.", ".lora_A.")]
        layers[layer] = Update(down, adapter.tensors[name], _scale(layer, len(down), adapter.config))
    return layers


def _scale(layer: str, rank: int, config: LoraConfig) -> float:
    """Return what peft multiplies an update by."""
    patterns: Any = config.alpha_pattern or {}
    alpha = patterns.get(layer if layer in patterns else get_pattern_key(list(patterns), layer), config.lora_alpha)
    return float(alpha) / (math.sqrt(rank) if config.use_rslora else rank)


def comfyui_tensors(family: str, updates: Mapping[str, Update], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the tensors of a ComfyUI file: a down, an up and a true alpha for each module of the published layout.

    Each format merges W + alpha / rank * up @ down, which here gives what peft gives. Raises ConfigError for a layer without a place.
    """
    groups: dict[tuple[str, str, str], list[tuple[Place, Update]]] = {}
    for layer, update in updates.items():
        published = place(family, layer, config)
        groups.setdefault(file_key(family, layer, published), []).append((published, update))
    tensors: dict[str, Tensor] = {}
    for (key, down_name, up_name), parts in groups.items():
        one = _stacked(parts)
        tensors[f"{key}.{down_name}"], tensors[f"{key}.{up_name}"] = one.down, one.up
        tensors[f"{key}.alpha"] = torch.tensor(one.scale * len(one.down))
    return tensors


def _stacked(parts: Sequence[tuple[Place, Update]]) -> Update:
    """Return the updates of a module's parts as one: downs on top of each other, ups block by block; parts without one get zeros."""
    (first, some), updates = parts[0], [update for _, update in parts]
    unit = len(some.up) // first.shares[first.part]
    down = torch.cat([update.down for update in updates])
    up = some.up.new_zeros(unit * sum(first.shares), len(down), *some.up.shape[2:])
    common = some.scale if all(update.scale == some.scale for update in updates) else 1.0
    column = 0
    for found, update in parts:
        row, (rows, rank) = unit * sum(found.shares[: found.part]), update.up.shape[:2]
        block = update.up if update.scale == common else update.up * update.scale
        up[row : row + rows, column : column + rank] = block.roll(rows // 2, 0) if found.swapped else block
        column += rank
    return Update(down.contiguous(), up, common)


def kohya_facts(family: str, updates: Mapping[str, Update], config: Mapping[str, Any], scheduler: Mapping[str, Any]) -> dict[str, str]:
    """Return what kohya's scripts, and programs that list LoRA files, look for in the metadata of one; `scheduler` is the base's config."""
    ranks = {len(update.down) for update in updates.values()}
    alphas = {update.scale * len(update.down) for update in updates.values()}
    version = BACKBONES[family].architecture(config, scheduler)[1]
    return {
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(ranks.pop()) if len(ranks) == 1 else "Dynamic",
        "ss_network_alpha": f"{alphas.pop():g}" if len(alphas) == 1 else "Dynamic",
        **({"ss_base_model_version": version} if version else {}),
        "ss_zero_terminal_snr": str(bool(scheduler.get("rescale_betas_zero_snr"))),
        **({"ss_v2": str(version.startswith("sd_v2"))} if version.startswith("sd_v") else {}),
    }
