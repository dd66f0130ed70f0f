"""A trained result as a stock diffusers pipeline."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from diffalign.adapters import WEIGHTS
from diffalign.backbones.sd import load_pipeline
from diffalign.errors import CheckpointError

RUN = "run.json"


def load(output_dir: str | Path, *, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu") -> Any:
    """Return the stock pipeline of a run's base model with the run's adapter, or its fine-tuned denoiser, applied.

    Raises CheckpointError if the folder holds no finished run.
    """
    folder = Path(output_dir)
    full = _run(folder)["train_method"] == "full"
    weights = folder / ("unet" if full else WEIGHTS)
    if not weights.exists():
        raise CheckpointError(f"{folder}: the run's weights are missing; expected {weights.name}")
    pipe = base_of(folder, dtype=dtype)
    if full:
        pipe.unet = type(pipe.unet).from_pretrained(weights, dtype=dtype)
    else:
        pipe.load_lora_weights(folder, weight_name=WEIGHTS)
    return pipe.to(device)


def base_of(output_dir: str | Path, *, dtype: torch.dtype = torch.float32) -> Any:
    """Return the stock pipeline of the model that a run started from, on the CPU."""
    run = _run(Path(output_dir))
    return load_pipeline(run["base"], revision=run.get("revision"), variant=run.get("variant"), dtype=dtype)


def _run(folder: Path) -> dict[str, Any]:
    if not (folder / RUN).is_file():
        raise CheckpointError(f"{folder}: no finished training run (it has no {RUN}); expected the output_dir of `diffalign train`")
    return json.loads((folder / RUN).read_text())
