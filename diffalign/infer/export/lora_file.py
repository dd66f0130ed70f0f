"""LoRA files: the one of a run, with what it adds to each weight, and the one that ComfyUI and kohya's scripts read."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft.utils.other import get_pattern_key
from safetensors import safe_open
from torch import Tensor

from diffalign.core.documents import parse_json
from diffalign.core.errors import CheckpointError, ConfigError
from diffalign.infer.export.keys import Place, file_key, place

PEFT_FACTS = "lora_adapter_metadata"  # the metadata key of diffusers for the adapter's config


@dataclass(frozen=True, slots=True, eq=False)
class Update:
    """What an adapter adds to one weight: scale * up @ down; down (r, in, ...), up (out, r, ...)."""

    down: Tensor
    up: Tensor
    scale: float


@dataclass(frozen=True, slots=True, eq=False)
class LoraFile:
    """A LoRA file in diffusers' own format: its tensors as they are, and its metadata."""

    path: Path
    tensors: dict[str, Tensor]
    metadata: dict[str, str]

    @classmethod
    def read(cls, path: Path) -> LoraFile:
        """Return the file at `path`."""
        with safe_open(path, "pt") as content:
            names = list(content.keys())
            return cls(path, {name: content.get_tensor(name) for name in names}, content.metadata() or {})

    def facts(self, component: str) -> dict[str, Any]:
        """Return the adapter's config as peft wrote it, empty if the file has none."""
        known = parse_json(self.metadata.get(PEFT_FACTS, "{}"), f"{self.path}, {PEFT_FACTS}", CheckpointError)
        return {name.removeprefix(f"{component}."): value for name, value in known.items()}

    def updates(self, component: str) -> dict[str, Update]:
        """Return the update of every layer of the denoiser. Raises ConfigError for DoRA, CheckpointError for anything else but LoRA."""
        facts, ups = self.facts(component), [name for name in self.tensors if name.endswith(".lora_B.weight")]
        known = {*ups, *(name.replace(".lora_B.", ".lora_A.") for name in ups)}
        if facts.get("use_dora") or any("lora_magnitude_vector" in name for name in self.tensors):
            raise ConfigError(
                f"{self.path}: a DoRA adapter; it is no sum of weights, and other programs weigh it differently, so there is no ComfyUI "
                "file of it: choose --formats diffusers merged"
            )
        if odd := sorted(self.tensors.keys() ^ known):
            raise CheckpointError(f"{self.path}: `{odd[0]}` is no half of a LoRA update; expected pairs of lora_A and lora_B")
        found = {}
        for name in ups:
            layer = name.removeprefix(f"{component}.").removesuffix(".lora_B.weight")
            down = self.tensors[name.replace(".lora_B.", ".lora_A.")]
            found[layer] = Update(down, self.tensors[name], _scale(layer, len(down), facts))
        return found


def _scale(layer: str, rank: int, facts: Mapping[str, Any]) -> float:
    """Return what peft multiplies an update by; a file without a config counts as alpha = rank, as in diffusers."""
    patterns = facts.get("alpha_pattern") or {}
    alpha = patterns.get(layer if layer in patterns else get_pattern_key(list(patterns), layer), facts.get("lora_alpha", rank))
    return float(alpha) / (math.sqrt(rank) if facts.get("use_rslora") else rank)


def comfyui_tensors(family: str, updates: Mapping[str, Update], config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the tensors of a ComfyUI file: a down, an up and a true alpha for each module of the published layout.

    Each format merges W + alpha / rank * up @ down, which here gives what peft gives. Raises ConfigError for a layer without a place.
    """
    groups: dict[tuple[str, str, str], list[tuple[Place, Update]]] = {}
    for layer, update in updates.items():
        found = place(family, layer, config)
        groups.setdefault(file_key(family, layer, found), []).append((found, update))
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
    version = architecture(family, config, scheduler)[1]
    return {
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(ranks.pop()) if len(ranks) == 1 else "Dynamic",
        "ss_network_alpha": f"{alphas.pop():g}" if len(alphas) == 1 else "Dynamic",
        **({"ss_base_model_version": version} if version else {}),
        **({"ss_v2": str(version.startswith("sd_v2"))} if family == "sd" else {}),
    }


def architecture(family: str, config: Mapping[str, Any], scheduler: Mapping[str, Any]) -> tuple[str, str]:
    """Return how ModelSpec and kohya's scripts name the base; the second is empty where they have no name for it."""
    if family == "sd":
        velocity = scheduler.get("prediction_type") == "v_prediction"
        if config.get("cross_attention_dim") == 1024:  # OpenCLIP's width: Stable Diffusion 2
            return f"stable-diffusion-v2-{'768-v' if velocity else '512'}", "sd_v2_v" if velocity else "sd_v2"
        return "stable-diffusion-v1", "sd_v1_v" if velocity else "sd_v1"
    if family == "flux":
        return f"flux-1-{'dev' if config.get('guidance_embeds') else 'schnell'}", "flux1"
    return {"sdxl": ("stable-diffusion-xl-v1-base", "sdxl_base_v1-0"), "sd3": ("stable-diffusion-3", ""), "pixart": ("pixart", "")}[family]
