"""The model and the data of a training step, as protocols."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from torch import nn


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
