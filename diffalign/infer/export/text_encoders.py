"""The adapters of text encoders in an export: checked against the encoders of the base, and named as ComfyUI and kohya's scripts do.

Both call the layers of CLIP by their names in transformers, behind `lora_te_` for a model with one encoder, else `lora_te1_` and
`lora_te2_` (comfy/lora.py, networks/lora.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import transformers
from torch import Tensor

from diffalign.core.runs import Run
from diffalign.infer.export.lora_file import Update, updates
from diffalign.models.adapter_files import CLIP, AdapterFile, encoders_in
from diffalign.models.backbones.folders import Layout, resolve
from diffalign.models.backbones.table import model_index

PREFIXES = {"text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_"}
ALONE = "lora_te_"


def encoder_adapters(run: Run) -> dict[str, AdapterFile]:
    """Return the adapters of a run's text encoders by their part. Raises CheckpointError where one is not of the base's encoder."""
    adapters = {}
    for part in encoders_in(run.folder):
        index, _ = model_index(run.base, run.facts.get("revision"))
        kind: Any = getattr(transformers, index[part][1])
        config = kind.config_class.from_pretrained(resolve(run.base), subfolder=part, revision=run.facts.get("revision"))
        adapters[part] = AdapterFile.read(run.folder, part)
        with torch.device("meta"):
            adapters[part].inject(kind(config))
    return adapters


def encoder_updates(adapters: Mapping[str, AdapterFile], layout: Layout) -> dict[str, Update]:
    """Return what the adapters add, by the names of modules in a file for ComfyUI and kohya's scripts."""
    prefixes = PREFIXES if "text_encoder_2" in layout.needed else {"text_encoder": ALONE}
    return {
        f"{prefixes[part]}{(CLIP + layer.removeprefix(CLIP)).replace('.', '_')}": update
        for part, adapter in adapters.items()
        for layer, update in updates(adapter).items()
    }


def named_tensors(modules: Mapping[str, Update]) -> dict[str, Tensor]:
    """Return the down, the up and the true alpha of modules by their names."""
    tensors = {}
    for name, update in modules.items():
        tensors |= {f"{name}.lora_down.weight": update.down, f"{name}.lora_up.weight": update.up}
        tensors[f"{name}.alpha"] = torch.tensor(update.scale * len(update.down))
    return tensors
