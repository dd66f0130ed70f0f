"""Language models: used as functions from prompts to texts."""

from __future__ import annotations

from pathlib import Path

import torch

from diffalign.core.errors import CheckpointError
from diffalign.core.runs import Run
from diffalign.data.view import View
from diffalign.infer.text.rewriter import Rewriter
from diffalign.methods.builders import dry_run, meta_text
from diffalign.methods.builders import text as builder
from diffalign.methods.config import TrainConfig
from diffalign.methods.parts import Parts
from diffalign.methods.recipe import Recipe
from diffalign.models import adapters
from diffalign.models.adapter_files import MODEL
from diffalign.models.adapters import load_peft
from diffalign.models.backbones.folders import lasting
from diffalign.models.text.network import load_language_model


def build(config: TrainConfig, recipe: Recipe, view: View, device: torch.device, *, fit: bool = True) -> Parts:  # noqa: ARG001  # as other kinds
    """Return network, likelihood, reference and data."""
    return builder.parts(config, recipe, view, device)


@torch.no_grad()
def preview(parts: Parts, config: TrainConfig, label: str, file: Path) -> None:  # noqa: ARG001  # answering is quick
    """Write answers to the validation prompts as `file`.txt."""
    file.parent.mkdir(exist_ok=True)
    model = parts.backbone
    writer = Rewriter(model.network, model.tokenizer, conversational=parts.facts["conversational"])
    texts = writer(config.validation_prompts, seed=0)
    shown = "".join(f"{prompt}\n  -> {text}\n" for prompt, text in zip(config.validation_prompts, texts, strict=True))
    file.with_suffix(".txt").write_text(shown, encoding="utf-8")


def save(parts: Parts, config: TrainConfig, folder: Path) -> None:  # noqa: ARG001  # as other kinds
    """Write the adapter as peft's files, or the whole model with its tokenizer."""
    model = parts.backbone
    if parts.recipe.tuning != "full":
        adapters.save_peft(model.network, folder, lasting(model.name))
        return
    adapters.save_full(model.network, folder / model.component)
    model.tokenizer.save_pretrained(folder / model.component)


def load(run: Run, *, dtype: torch.dtype, device: str | torch.device) -> Rewriter:
    """Return the run's model: prompts in, texts out."""
    weights = run.folder / MODEL
    if run.full and not weights.is_dir():
        raise CheckpointError(f"{run.folder}: the run's weights are missing; expected {weights.name}")
    if run.full:
        return _writer(run, str(weights), None, None, dtype, torch.device(device))
    writer = base_writer(run, dtype=dtype, device=device)
    load_peft(writer.model, run.folder)
    return writer


def base_writer(run: Run, *, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu") -> Rewriter:
    """Return the language model that a run started from, asked as the run's result is."""
    return _writer(run, run.base, run.facts.get("revision"), run.facts.get("variant"), dtype, torch.device(device))


def _writer(run: Run, name: str, revision: str | None, variant: str | None, dtype: torch.dtype, device: torch.device) -> Rewriter:
    template = run.facts.get("chat_template")
    model = load_language_model(name, device, precision=dtype, revision=revision, variant=variant, chat_template=template)
    return Rewriter(model.network, model.tokenizer, conversational=run.facts.get("conversational"))


def outlook(config: TrainConfig, recipe: Recipe, candidates: int) -> str:  # noqa: ARG001  # activations are left out
    """Return what would be trained, and the memory of weights and optimiser."""
    model, rows = meta_text.described(config, recipe)
    lines = dry_run.aligned([*rows, *dry_run.step_rows(config, recipe, model, dry_run.opened(config, recipe))])
    return "\n".join([*lines, "", *dry_run.table(dry_run.weights(config, recipe, model.network)), "", meta_text.NOTE])
