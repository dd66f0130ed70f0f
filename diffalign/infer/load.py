"""A trained result as a stock diffusers pipeline."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from diffalign.adapters import WEIGHTS
from diffalign.backbones.sd import load_pipeline
from diffalign.errors import CheckpointError, ConfigError
from diffalign.infer.negative import attach

RUN = "run.json"


def load(
    output_dir: str | Path,
    *,
    positive: str | Path | None = None,
    alpha: float = 1.0,
    beta: float = 1.0,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
) -> Any:
    """Return the stock pipeline of a run's base model with the run's result applied.

    The result is an adapter or a fine-tuned denoiser; of Diffusion-NPO and Self-NPO it is what the unconditional branch runs with
    (see `attach`), on top of the run `positive`, if one is given: `alpha` is the share of it that the branch keeps, `beta` the
    weight of the result. Raises CheckpointError if a folder holds no finished run, ConfigError for `positive` with other methods.
    """
    folder = Path(output_dir)
    run = _run(folder)
    if run.get("inference") != "negative_guidance":
        if positive is not None or (alpha, beta) != (1.0, 1.0):
            raise ConfigError(
                f"{folder}: `positive`, `alpha` and `beta` are for runs of diffusion_npo and self_npo; this is {run['method']}"
            )
        return _with_result(folder, dtype).to(device)
    over = None if positive is None else _run(Path(positive))
    if over is not None and over.get("inference") == "negative_guidance":
        raise ConfigError(f"{positive}: `positive` is a run of {over['method']} itself; expected one that aligns")
    if alpha != 1.0 and (over is None or over["train_method"] == "full"):
        raise ConfigError(f"`alpha` is {alpha}, and there is no positive adapter to keep a part of (`positive`: a LoRA run)")
    pipe = base_of(folder, dtype=dtype) if positive is None else _with_result(Path(positive), dtype)
    attach(pipe, folder, alpha=alpha, beta=beta)
    return pipe.to(device)


def _with_result(folder: Path, dtype: torch.dtype) -> Any:
    """Return the base of a run with its adapter or its denoiser."""
    full = _run(folder)["train_method"] == "full"
    weights = folder / ("unet" if full else WEIGHTS)
    if not weights.exists():
        raise CheckpointError(f"{folder}: the run's weights are missing; expected {weights.name}")
    pipe = base_of(folder, dtype=dtype)
    if full:
        pipe.unet = type(pipe.unet).from_pretrained(weights, dtype=dtype)
    else:
        pipe.load_lora_weights(folder, weight_name=WEIGHTS)
    return pipe


def base_of(output_dir: str | Path, *, dtype: torch.dtype = torch.float32) -> Any:
    """Return the stock pipeline of the model that a run started from, on the CPU."""
    run = _run(Path(output_dir))
    return load_pipeline(run["base"], revision=run.get("revision"), variant=run.get("variant"), dtype=dtype)


def _run(folder: Path) -> dict[str, Any]:
    if not (folder / RUN).is_file():
        raise CheckpointError(f"{folder}: no finished training run (it has no {RUN}); expected the output_dir of `diffalign train`")
    return json.loads((folder / RUN).read_text())
