"""A trained result as a stock diffusers pipeline, or of a language model as a function from prompts to texts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers.loaders.lora_base import LoraBaseMixin

from diffalign.core.errors import CheckpointError, ConfigError
from diffalign.core.runs import run_facts
from diffalign.infer.negative import ADAPTER, attach
from diffalign.infer.text.rewriter import Rewriter
from diffalign.infer.users.personal import Personal
from diffalign.models.adapters import PEFT_WEIGHTS, WEIGHTS, load_lora, load_peft
from diffalign.models.backbones.table import component_of, load_pipeline
from diffalign.models.text.network import MODEL, load_language_model


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
    """Return the stock pipeline of a run's base model with the run's result applied; of a personalised run, a `Personal` around it.

    Of a language model's run, a `Rewriter`: prompts in, texts out, for example before a pipeline.

    The result is an adapter or a fine-tuned denoiser; of Diffusion-NPO and Self-NPO it is what the unconditional branch runs with
    (see `attach`), on top of the run `positive`, if one is given: `alpha` is the share of it that the branch keeps, `beta` the
    weight of the result. A personalised run is put on top of `positive`, too. `device_map` is diffusers' (balanced, cuda), instead of
    `device`. Raises CheckpointError if a folder holds no finished run, ConfigError for `positive` with other methods.
    """
    folder = Path(output_dir)
    run = run_facts(folder)
    over = None if positive is None else run_facts(Path(positive))
    check_layers(folder, run, positive, over, alpha, beta)
    if run.get("kind") == "text":
        return _rewriter(folder, run, dtype, torch.device(device))
    if run.get("inference") != "negative_guidance":
        return _placed(_with_result(folder, dtype, device_map, positive), device, device_map)
    under = None if positive is None else Path(positive)
    if under is None or over is None or over.get("inference") == "user":
        pipe = base_of(under or folder, dtype=dtype, device_map=device_map)
    else:
        pipe = _with_result(under, dtype, device_map)
    attach(pipe, _negative_of(pipe, folder), alpha=alpha, beta=beta)
    if under is not None and over is not None and over.get("inference") == "user":
        # The branch comes last: an adapter is injected wherever a layer has the right name, and some of SD3's projector do.
        return _placed(Personal(pipe, under, over, guided_by=folder), device, device_map)
    return _placed(pipe, device, device_map)


def check_layers(folder: Path, run: dict[str, Any], positive: Any, over: dict[str, Any] | None, alpha: float, beta: float) -> None:
    """Raise ConfigError for a run that does not go on top of the run `positive`, or weights that have nothing to weigh."""
    kind = run.get("inference")
    if kind != "negative_guidance" and ((alpha, beta) != (1.0, 1.0) or (over is not None and kind != "user")):
        raise ConfigError(
            f"{folder}: `alpha` and `beta` are for runs of diffusion_npo and self_npo, `positive` for these and personalised runs; "
            f"this is {run['method']}"
        )
    if over is not None and (over.get("inference") == "negative_guidance" or over.get("inference") == kind):
        raise ConfigError(f"{positive}: `positive` is a run of {over['method']} itself; expected one that aligns")
    if over is not None and kind == "user" and Path(over["base"]).name != Path(run["base"]).name:
        raise ConfigError(f"{positive}: `positive` is a run on {over['base']}, and {folder} one on {run['base']}; expected the same base")
    if alpha != 1.0 and (over is None or over["train_method"] in ("full", "user")):
        raise ConfigError(f"`alpha` is {alpha}, and there is no positive adapter to keep a part of (`positive`: a LoRA run)")


def _placed(made: Any, device: str | torch.device, device_map: str | None) -> Any:
    if device_map is None:
        (made.pipe if isinstance(made, Personal) else made).to(device)
    return made


def _with_result(folder: Path, dtype: torch.dtype, device_map: str | None, positive: str | Path | None = None) -> Any:
    """Return the base of a run with its adapter, its denoiser or its user branch; this one on top of the run `positive`, if given."""
    run = run_facts(folder)
    if run.get("inference") == "user":
        pipe = base_of(folder, dtype=dtype, device_map=device_map) if positive is None else _with_result(Path(positive), dtype, device_map)
        return Personal(pipe, folder, run)
    full, component = run["train_method"] == "full", run.get("component", "unet")
    weights = folder / (component if full else WEIGHTS)
    if not weights.exists():
        raise CheckpointError(f"{folder}: the run's weights are missing; expected {weights.name}")
    pipe = base_of(folder, dtype=dtype, device_map=device_map, denoiser=weights if full else None)
    if not full:
        load_lora(pipe, folder, component)
    return pipe


def _rewriter(folder: Path, run: dict[str, Any], dtype: torch.dtype, device: torch.device) -> Rewriter:
    full = run["train_method"] == "full"
    needed = folder / (MODEL if full else PEFT_WEIGHTS)
    if not needed.exists():
        raise CheckpointError(f"{folder}: the run's weights are missing; expected {needed.name}")
    made = _writer(run, str(needed), None, None, dtype, device) if full else base_writer(folder, dtype=dtype, device=device)
    if not full:
        load_peft(made.model, folder)
    return made


def base_writer(output_dir: str | Path, *, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu") -> Rewriter:
    """Return the language model that a run started from, asked as the run's result is."""
    run = run_facts(Path(output_dir))
    return _writer(run, run["base"], run.get("revision"), run.get("variant"), dtype, torch.device(device))


def _writer(
    run: dict[str, Any], name: str, revision: str | None, variant: str | None, dtype: torch.dtype, device: torch.device
) -> Rewriter:
    template = run.get("chat_template")
    model = load_language_model(name, device, precision=dtype, revision=revision, variant=variant, chat_template=template)
    return Rewriter(model.network, model.tokenizer, conversational=run.get("conversational"))


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
