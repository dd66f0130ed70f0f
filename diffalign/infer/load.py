"""A trained result as a stock diffusers pipeline."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders.lora_base import LoraBaseMixin

from diffalign.adapters import WEIGHTS, load_lora
from diffalign.backbones.table import component_of, load_pipeline
from diffalign.errors import CheckpointError, ConfigError
from diffalign.infer.negative import ADAPTER, attach
from diffalign.result import RUN


def load(
    output_dir: str | Path,
    *,
    positive: str | Path | None = None,
    alpha: float = 1.0,
    beta: float = 1.0,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    device_map: str | None = None,
) -> Any:
    """Return the stock pipeline of a run's base model with the run's result applied.

    The result is an adapter or a fine-tuned denoiser; of Diffusion-NPO and Self-NPO it is what the unconditional branch runs with
    (see `attach`), on top of the run `positive`, if one is given: `alpha` is the share of it that the branch keeps, `beta` the
    weight of the result. `device_map` is diffusers' (balanced, cuda), instead of `device`. Raises CheckpointError if a folder holds
    no finished run, ConfigError for `positive` with other methods.
    """
    folder = Path(output_dir)
    run = run_facts(folder)
    if run.get("inference") != "negative_guidance":
        if positive is not None or (alpha, beta) != (1.0, 1.0):
            raise ConfigError(
                f"{folder}: `positive`, `alpha` and `beta` are for runs of diffusion_npo and self_npo; this is {run['method']}"
            )
        return _placed(_with_result(folder, dtype, device_map), device, device_map)
    over = None if positive is None else run_facts(Path(positive))
    if over is not None and over.get("inference") == "negative_guidance":
        raise ConfigError(f"{positive}: `positive` is a run of {over['method']} itself; expected one that aligns")
    if alpha != 1.0 and (over is None or over["train_method"] == "full"):
        raise ConfigError(f"`alpha` is {alpha}, and there is no positive adapter to keep a part of (`positive`: a LoRA run)")
    pipe = base_of(folder, dtype=dtype, device_map=device_map) if positive is None else _with_result(Path(positive), dtype, device_map)
    attach(pipe, _negative_of(pipe, folder), alpha=alpha, beta=beta)
    return _placed(pipe, device, device_map)


def _placed(pipe: Any, device: str | torch.device, device_map: str | None) -> Any:
    return pipe.to(device) if device_map is None else pipe


def _with_result(folder: Path, dtype: torch.dtype, device_map: str | None) -> Any:
    """Return the base of a run with its adapter or its denoiser."""
    run = run_facts(folder)
    full, component = run["train_method"] == "full", run.get("component", "unet")
    weights = folder / (component if full else WEIGHTS)
    if not weights.exists():
        raise CheckpointError(f"{folder}: the run's weights are missing; expected {weights.name}")
    pipe = base_of(folder, dtype=dtype, device_map=device_map, denoiser=weights if full else None)
    if not full:
        load_lora(pipe, folder, component)
    return pipe


def _negative_of(pipe: Any, folder: Path) -> Path | str:
    """Return what `attach` takes: the folder, or an adapter that is loaded here because the pipeline itself reads none (PixArt's)."""
    if isinstance(pipe, LoraBaseMixin):
        return folder
    load_lora(pipe, folder, component_of(pipe), ADAPTER)
    return ADAPTER


def base_of(
    output_dir: str | Path, *, dtype: torch.dtype = torch.float32, device_map: str | None = None, denoiser: Path | None = None
) -> Any:
    """Return the stock pipeline of the model that a run started from, on the CPU unless `device_map` says otherwise.

    `denoiser` is a folder whose network stands in for the model's own.
    """
    run = run_facts(Path(output_dir))
    options = {"revision": run.get("revision"), "variant": run.get("variant"), "vae": run.get("vae")}
    return load_pipeline(run["base"], **options, dtype=dtype, device_map=device_map, denoiser=denoiser)


def run_facts(folder: Path) -> dict[str, Any]:
    """Return run.json of a finished run. Raises CheckpointError where there is none."""
    if not (folder / RUN).is_file():
        raise CheckpointError(f"{folder}: no finished training run (it has no {RUN}); expected the output_dir of `diffalign train`")
    return json.loads((folder / RUN).read_text())
