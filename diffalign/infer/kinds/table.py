"""Kinds by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import torch

from diffalign.core.keys import Kind
from diffalign.core.runs import Run
from diffalign.data.view import View
from diffalign.infer.kinds import image, reward, text
from diffalign.methods.config import TrainConfig
from diffalign.methods.parts import Parts
from diffalign.methods.recipe import Recipe


class KindModule(Protocol):
    """What every kind of model offers."""

    def build(self, config: TrainConfig, recipe: Recipe, view: View, device: torch.device, *, fit: bool = True) -> Parts:
        """Return the parts of a run; without `fit` nothing is fitted that weights loaded later will replace."""
        ...

    def preview(self, parts: Parts, config: TrainConfig, label: str, file: Path) -> None:
        """Write what the network says to the validation prompts beside `file`."""
        ...

    def save(self, parts: Parts, config: TrainConfig, folder: Path) -> None:
        """Write what was trained to `folder`."""
        ...

    def load(self, run: Run, *, dtype: torch.dtype, device: str | torch.device) -> Any:
        """Return what a finished run is used as."""
        ...

    def outlook(self, config: TrainConfig, recipe: Recipe, candidates: int) -> str:
        """Return what a training would train, and about how much memory it takes; nothing is loaded or written."""
        ...


KINDS: dict[Kind, KindModule] = {"image": image, "text": text, "reward": reward}
