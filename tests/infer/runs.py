"""Finished runs as training leaves them, with random results instead of trained ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import yaml
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor

from diffalign.models import adapters
from diffalign.models.backbones.table import BACKBONES, family_of
from tests.micro_models import stock

ALPHA, RANK = 6.0, 4


def write_run(folder: Path, base: Path, *, method: str = "diffusion_dpo", train_method: str = "lora", **options: Any) -> Path:
    """Write a run on the model in `base` whose adapter (or denoiser) is random; `options` are more facts, and `targets`."""
    pipe = stock(base)
    component = "unet" if "unet" in pipe.components else "transformer"
    network, generator = getattr(pipe, component), torch.Generator().manual_seed(1)
    targets = options.pop("targets", BACKBONES[family_of(pipe)].lora_targets)
    if train_method == "full":
        with torch.no_grad():
            for parameter in network.parameters():
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
        adapters.save_full(network, folder / component)
    else:
        adapters.add_lora(network, targets=targets, rank=RANK, alpha=ALPHA, dora=train_method == "dora")
        for name, parameter in network.named_parameters():
            if "lora_A" in name or "lora_B" in name:
                parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
        adapters.save_lora(pipe, folder, component)
    inference = "negative_guidance" if method in ("diffusion_npo", "self_npo") else "plain"
    facts = {"base": str(base), "component": component, "method": method, "train_method": train_method, "inference": inference}
    facts |= {"steps": 7, "batch": 16, "records": 24, "table": None, "objective": {"dpo": {"beta": 5000.0}}, **options}
    (folder / "run.json").write_text(json.dumps(facts))
    config = {"method": method, "train_method": train_method, "rank": RANK, "lora_alpha": ALPHA, "learning_rate": 1e-4, "seed": 0}
    (folder / "config.yaml").write_text(yaml.safe_dump(config | {"dataset_name": options.get("dataset_name", "votes")}))
    return folder


def weights(network: Any) -> dict[str, Tensor]:
    """Return the weights of a network with its adapters merged by peft, under their plain names."""
    for layer in [layer for layer in network.modules() if isinstance(layer, BaseTunerLayer)]:
        layer.merge()
    return {name.replace(".base_layer", ""): value.clone() for name, value in network.state_dict().items() if ".lora_" not in name}
