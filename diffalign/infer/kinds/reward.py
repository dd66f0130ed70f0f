"""Reward models: heads on frozen embeddings, used as scorers."""

from __future__ import annotations

from pathlib import Path

import torch

from diffalign.core.runs import Run
from diffalign.data.view import View
from diffalign.methods.builders import dry_run
from diffalign.methods.builders import reward as builder
from diffalign.methods.config import TrainConfig
from diffalign.methods.parts import Parts
from diffalign.methods.recipe import Recipe
from diffalign.rewards.heads.settings import settings_of
from diffalign.rewards.heads.store import FILE, save_head
from diffalign.rewards.scorers.trained import HeadScorer, trained


def build(config: TrainConfig, recipe: Recipe, view: View, device: torch.device, *, fit: bool = True) -> Parts:  # noqa: ARG001  # as other kinds
    """Return head, embeddings and data."""
    return builder.parts(config, recipe, view, device)


def preview(parts: Parts, config: TrainConfig, label: str, file: Path) -> None:
    """Write nothing: a scorer draws nothing."""


def save(parts: Parts, config: TrainConfig, folder: Path) -> None:  # noqa: ARG001  # as other kinds
    """Write the head to `folder`."""
    save_head(parts.backbone.network, folder / FILE, embeds=parts.backbone.embeds, beta=parts.backbone.beta)


def load(run: Run, *, dtype: torch.dtype, device: str | torch.device) -> HeadScorer:  # noqa: ARG001  # a head is float32
    """Return the run as a scorer of images: of reward_pal that of the average user."""
    return trained(path=str(run.folder), device=str(device))


def outlook(config: TrainConfig, recipe: Recipe, candidates: int) -> str:  # noqa: ARG001  # embeddings are computed before training
    """Return what would be trained, and on how many records."""
    name, head = settings_of(config.reward_head, config.method)
    view = dry_run.opened(config, recipe)
    if view is not None:
        builder.check(config, view)
        view.entries = builder.divided(config, view)[0]
    model = ("model", f"reward head {name} ({head}) on embeddings of {config.pretrained_model_name_or_path}")
    return "\n".join(dry_run.aligned([model, *dry_run.step_rows(config, recipe, None, view)]))
