"""Image generators: used as stock diffusers pipelines."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

from diffalign.core.errors import CheckpointError
from diffalign.core.processes import spreads_weights
from diffalign.core.runs import Run
from diffalign.infer.preview import sheet
from diffalign.infer.users.personal import Personal
from diffalign.methods.builders import dry_run, meta_model
from diffalign.methods.builders.image import parts as build  # noqa: F401  # one of the five names
from diffalign.methods.builders.memory_by_rank import memory_by_rank
from diffalign.methods.config import TrainConfig
from diffalign.methods.parts import Parts
from diffalign.methods.recipe import Recipe
from diffalign.models import adapters
from diffalign.models.adapter_files import WEIGHTS
from diffalign.models.adapters import load_lora
from diffalign.models.backbones.base_lora import BaseLora
from diffalign.models.backbones.table import BACKBONES, family_of, load_denoiser, load_pipeline
from diffalign.models.control import FOLDER as CONTROLNET
from diffalign.models.control import kind_of, pipeline_of, read_controlnet
from diffalign.models.users import branch
from diffalign.models.users.store import BRANCH, ENCODER, save_encoder

logger = logging.getLogger(__name__)


@torch.no_grad()
def preview(parts: Parts, config: TrainConfig, label: str, file: Path) -> None:
    """Write pictures of the validation prompts with seeds 0, 1, ... as `file`.png; of a personalised run a row for each of a few users."""
    if parts.recipe.inference == "negative_guidance" and parts.recipe.tuning == "full":
        return  # two networks would be needed to show what it is for
    file.parent.mkdir(exist_ok=True)
    sheet(parts, config, label).save(file.with_suffix(".png"))


def save(parts: Parts, config: TrainConfig, folder: Path) -> None:
    """Write the user branch with its encoder, the ControlNet, adapter or denoiser; of full training for guidance an adapter, too."""
    backbone, recipe = parts.backbone, parts.recipe
    pipe, component = backbone.pipeline(whole=False), backbone.component
    if recipe.tuning == "user":
        denoiser: Any = backbone.denoiser
        branch.save(denoiser, folder / BRANCH, {"encoder": denoiser.user_encoder.fingerprint()})
        save_encoder(denoiser.user_encoder, folder / ENCODER)
        return
    if recipe.tuning == "controlnet":
        adapters.save_full(pipe.controlnet, folder / CONTROLNET)
        return
    if recipe.tuning != "full":
        adapters.save_lora(pipe, folder, component)
        return
    adapters.save_full(backbone.denoiser, folder / component)
    if recipe.inference == "negative_guidance":  # it takes an adapter: one network serves both branches
        base = load_denoiser(config.pretrained_model_name_or_path, revision=config.revision, variant=config.variant)
        kept = adapters.save_difference(pipe, base, backbone.denoiser, folder, component=component)
        logger.info("%s: an adapter with %.1f %% of the squared change, for guidance", WEIGHTS, 100 * kept)


def load(run: Run, *, dtype: torch.dtype, device: str | torch.device) -> Any:
    """Return the stock pipeline with the run's result, or of a personalised run a `Personal` around it."""
    made = with_result(run, dtype)
    (made.pipe if isinstance(made, Personal) else made).to(device)
    return made


def with_result(run: Run, dtype: torch.dtype, device_map: str | None = None, under: Run | None = None) -> Any:
    """Return the base of a run with its adapter, denoiser, ControlNet or user branch; this one on top of the run `under`, if given."""
    if run.personal:
        pipe = base_of(run, dtype=dtype, device_map=device_map) if under is None else with_result(under, dtype, device_map)
        return Personal(pipe, run)
    if run.conditioned:
        pipe = base_of(run, dtype=dtype, device_map=device_map)
        denoiser = getattr(pipe, run.component)
        controlnet = read_controlnet(kind_of(pipe), str(run.folder / CONTROLNET), denoiser).requires_grad_(False).eval()
        nn.Module.to(controlnet, dtype)  # the class's own method warns of it
        return pipeline_of(pipe, controlnet, BACKBONES[family_of(pipe)].pipeline_options)
    weights = run.folder / run.component
    if run.full and not weights.is_dir():
        raise CheckpointError(f"{run.folder}: the run's weights are missing; expected {weights.name}")
    pipe = base_of(run, dtype=dtype, device_map=device_map, trained=weights if run.full else None)
    if not run.full:
        load_lora(pipe, run.folder, run.component)
    return pipe


def base_of(run: Run, *, dtype: torch.dtype = torch.float32, device_map: str | None = None, trained: Path | None = None) -> Any:
    """Return the stock pipeline of the model that a run started from, on the CPU unless `device_map` says otherwise.

    `trained` is a folder whose network stands in for the model's own.
    """
    options = {name: run.facts.get(name) for name in ("revision", "variant", "vae")}
    denoiser = None if run.facts.get("denoiser") is None else Path(run.facts["denoiser"])
    loras = [BaseLora.of_facts(facts) for facts in run.facts.get("base_lora") or ()]
    return load_pipeline(run.base, **options, dtype=dtype, device_map=device_map, denoiser=denoiser, trained=trained, base_loras=loras)


def outlook(config: TrainConfig, recipe: Recipe, candidates: int) -> str:
    """Return what would be trained, and the memory of a step on records of so many candidates, where they are no table yet."""
    outline, view = meta_model.outline(config, recipe, torch.device("cuda")), dry_run.opened(config, recipe)
    rows = [*dry_run.model_rows(config, recipe, outline), *dry_run.step_rows(config, recipe, outline.model, view)]
    inputs = dry_run.has_inputs(outline, view)
    candidates = candidates if view is None else len(view.entries[0].order)
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if spreads_weights():
        memory = memory_by_rank(config, recipe, outline, processes, candidates, inputs=inputs)
    else:
        memory = dry_run.memory(config, recipe, outline, candidates, inputs=inputs)
    before = []
    if config.cache == "auto" and not config.prompts:
        size = "" if view is None else f", which would take {dry_run.readable(dry_run.cache_bytes(config, outline, view))} of disk"
        before = [f"Whether latents and prompts are kept on disk{size}, is decided when the encoders are there to be timed."]
    if config.cache == "disk" and not config.prompts:
        size = "" if view is None else f" It takes at most {dry_run.readable(dry_run.cache_bytes(config, outline, view))} of disk."
        encoders, works = (dry_run.readable(size) for size in dry_run.filling(config, recipe, outline))
        filled = f"filled by {dry_run.encoder_names(outline)}: {encoders}, and {works} that the VAE works in, beside the weights"
        before = [f"Before training, the cache is {filled}.{size}"]
    here = [f"That is on the device of each of the {processes} processes, over which the weights are spread (FSDP2)."]
    if not spreads_weights():
        here = dry_run.room(config, recipe, outline, sum(size for _, size in memory))
    return "\n".join([*dry_run.aligned(rows), "", *dry_run.table(memory), "", dry_run.NOTE, *before, *here])
