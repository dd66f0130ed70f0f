"""What a training step uses, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from torch import Tensor, nn

from diffalign.core.types import Condition, Likelihood, Reference, Scores


class Trained(Protocol):
    """A loaded model of any kind, as the trainer sees it."""

    @property
    def name(self) -> str:
        """Return the folder or hub id that it was loaded from."""
        ...

    @property
    def component(self) -> str:
        """Return what the folder of a full result is called: unet, transformer or model."""
        ...

    @property
    def lora_targets(self) -> tuple[str, ...]:
        """Return the names of the layers that get an adapter."""
        ...

    @property
    def network(self) -> nn.Module:
        """Return what gets trained; everything else is frozen."""
        ...

    def beta_in_words(self, beta: float) -> str:
        """Return what a beta is multiplied with."""
        ...

    def park(self) -> None:
        """Move what a training step does not use off the accelerator, until it is asked for."""
        ...

    def fingerprint(self) -> str:
        """Return a hash that changes when what is cached before training would."""
        ...


Index = tuple[int, int]  # (position in the view, epoch)


class Pairs(Protocol):
    """Training data: a torch dataset over (position, epoch) whose rows make batches."""

    buckets: np.ndarray | None  # (records,) which records have images, and latents, of one size; None: all

    def __len__(self) -> int:
        """Return the number of records."""
        ...

    def __getitem__(self, index: Index) -> dict[str, Any]:
        """Return one loaded record."""
        ...

    def to_batch(self, rows: list[dict[str, Any]]) -> Any:
        """Return the batch of loaded rows of one bucket: a Batch of images, or a TextBatch."""
        ...


@dataclass(frozen=True, slots=True)
class Parts:
    """Everything a training step uses. The trainer knows no method; it knows these."""

    backbone: Any  # a Trained; of image models a Backbone
    likelihood: Likelihood
    reference: Reference
    objective: Callable[[Scores], Tensor]
    pairs: Pairs
    driver: str = "policy"  # whose network runs the trajectory: policy | reference | ema
    index: Callable[[int], Index] | None = None  # of a sample, where not simply every record is sampled once an epoch
    penalty: Callable[[Condition, float], dict[str, Tensor]] | None = None  # of a batch's condition, at a share of the run
    facts: Mapping[str, Any] = field(default_factory=dict)  # what run.json and checkpoints say besides
    groups: list[dict[str, Any]] | None = None  # of parameters, for the optimiser, where they do not all learn alike
    measure: Callable[[Path], Mapping[str, Any]] | None = None  # what is found out about the result before run.json is written
