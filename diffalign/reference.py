"""What the policy is compared with: nothing, a frozen copy, or itself with its adapter switched off."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from diffalign.types import Likelihood, Query


@contextlib.contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Put `model` in eval mode for the block and restore what each of its layers was, also on an error."""
    training = [layer for layer in model.modules() if layer.training]
    for layer in training:
        layer.training = False
    try:
        yield
    finally:
        for layer in training:
            layer.training = True


@dataclass(frozen=True, slots=True)
class NoReference:
    """For methods that compare with nothing; no network is built or run."""

    def score(self, likelihood: Likelihood, query: Query) -> Tensor | None:  # noqa: ARG002
        """Return None."""
        return None


@dataclass(frozen=True, slots=True)
class Frozen:
    """A second network that never changes: full fine-tuning, or a reference that is not the starting point."""

    model: nn.Module

    def score(self, likelihood: Likelihood, query: Query) -> Tensor | None:
        """Return the frozen network's scores (B, K), without gradient."""
        with torch.no_grad(), eval_mode(self.model):
            return likelihood.score(self.model, query)


@dataclass(frozen=True, slots=True)
class AdapterOff:
    """The policy's own base weights: one network in memory. `disabled(model)` switches the adapter off for a block."""

    model: nn.Module
    disabled: Callable[[nn.Module], AbstractContextManager[None]]

    def score(self, likelihood: Likelihood, query: Query) -> Tensor | None:
        """Return the base network's scores (B, K), without gradient; the adapter is on again afterwards, also on an error."""
        with torch.no_grad(), eval_mode(self.model), self.disabled(self.model):
            return likelihood.score(self.model, query)
