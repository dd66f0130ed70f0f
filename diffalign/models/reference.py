"""What the policy is compared with: nothing, a frozen copy, itself with its adapter switched off, or with the one it started with.

`Several` is for objectives that compare with more than one network.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from diffalign.core.errors import ConfigError
from diffalign.core.types import Compared, Likelihood, Reference
from diffalign.models.sharded import local


class EvalMode:
    """Puts a network in eval mode for blocks. Its layers are listed once: a walk over a large network takes milliseconds."""

    def __init__(self, model: nn.Module) -> None:
        self._layers = [vars(layer) for layer in model.modules()]

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        """Set eval mode for the block and restore what each layer was, also on an error."""
        training = [own for own in self._layers if own["training"]]
        for own in training:
            own["training"] = False
        try:
            yield
        finally:
            for own in training:
                own["training"] = True


def eval_mode(model: nn.Module) -> AbstractContextManager[None]:
    """Return a block with `model` in eval mode, see `EvalMode`."""
    return EvalMode(model)()


@contextlib.contextmanager
def exchanged(parameters: Sequence[nn.Parameter], others: Sequence[Tensor]) -> Iterator[None]:
    """Let parameters and other tensors change places for the block, also on an error.

    Nothing is copied, but for parameters that are spread over processes (`models.sharded`): of these the content changes places, one
    share at a time, for what gathers them does not look where a parameter's data lie.
    """
    pairs = list(zip(parameters, others, strict=True))

    def exchange() -> None:
        for parameter, other in pairs:
            if isinstance(parameter, DTensor):
                _swap(local(parameter), local(other))
            else:
                parameter.data, other.data = other.data, parameter.data

    exchange()
    try:
        yield
    finally:
        exchange()


@torch.no_grad()
def _swap(one: Tensor, other: Tensor) -> None:
    before = one.clone()
    one.copy_(other)
    other.copy_(before)


@dataclass(frozen=True, slots=True)
class NoReference:
    """For methods that compare with nothing; no network is built or run."""

    def score(self, likelihood: Likelihood, query: Any) -> Any:  # noqa: ARG002  # the protocol's
        """Return None."""
        return None

    def driving(self) -> AbstractContextManager[nn.Module]:
        """Raise ConfigError: there is no network."""
        raise ConfigError("the trajectory's driver is `reference`, and the method has no reference; use driver policy or ema")


@dataclass(frozen=True, slots=True)
class Cached:
    """What the reference said before training; it is in the batch, and no network is run."""

    def score(self, likelihood: Likelihood, query: Any) -> Any:  # noqa: ARG002  # the protocol's
        """Return the batch's `reference`."""
        return query.reference

    def driving(self) -> AbstractContextManager[nn.Module]:
        """Raise ConfigError: there is no network."""
        raise ConfigError("the reference's scores were computed before training, and no reference network is there to drive with")


@dataclass(frozen=True, slots=True)
class Frozen:
    """A second network that never changes: full fine-tuning, or a reference that is not the starting point."""

    model: nn.Module
    evaluating: EvalMode = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "evaluating", EvalMode(self.model))

    def score(self, likelihood: Likelihood, query: Any) -> Any:
        """Return the frozen network's scores (B, K), without gradient."""
        with torch.no_grad(), self.driving() as model:
            return likelihood.score(model, query)

    @contextlib.contextmanager
    def driving(self) -> Iterator[nn.Module]:
        """Give the frozen network, in eval mode."""
        with self.evaluating():
            yield self.model


@dataclass(frozen=True, slots=True)
class AdapterOff:
    """The policy's own base weights: one network in memory. `disabled()` is a block in which its adapter is off."""

    model: nn.Module
    disabled: Callable[[], AbstractContextManager[None]]
    evaluating: EvalMode = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "evaluating", EvalMode(self.model))

    def score(self, likelihood: Likelihood, query: Any) -> Any:
        """Return the base network's scores (B, K), without gradient; the adapter is on again afterwards, also on an error."""
        with torch.no_grad(), self.driving() as model:
            return likelihood.score(model, query)

    @contextlib.contextmanager
    def driving(self) -> Iterator[nn.Module]:
        """Give the network with its adapter off, in eval mode."""
        with self.evaluating(), self.disabled():
            yield self.model


@dataclass(frozen=True, slots=True)
class Start:
    """The policy with what is trained as it was at the start: one network, and a copy of what it trains, which may `follow` it."""

    model: nn.Module
    parameters: Sequence[nn.Parameter]
    values: Sequence[Tensor]
    evaluating: EvalMode = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "evaluating", EvalMode(self.model))

    @classmethod
    def of(cls, model: nn.Module) -> Start:
        """Return the reference that `model` is now."""
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        return cls(model, parameters, [parameter.detach().clone() for parameter in parameters])

    @torch.no_grad()
    def follow(self, decay: float) -> None:
        """Move the values towards those of the network now: decay values + (1 - decay) network."""
        for value, parameter in zip(self.values, self.parameters, strict=True):
            value.lerp_(parameter, 1.0 - decay)

    def score(self, likelihood: Likelihood, query: Any) -> Any:
        """Return the scores (B, K) of the network as it started, without gradient; the policy's weights are back afterwards."""
        with torch.no_grad(), self.driving() as model:
            return likelihood.score(model, query)

    @contextlib.contextmanager
    def driving(self) -> Iterator[nn.Module]:
        """Give the network with the weights that it started with, in eval mode."""
        with self.evaluating(), exchanged(self.parameters, self.values):
            yield self.model


@dataclass(frozen=True, slots=True)
class Several:
    """More than one network to compare with, each scored at the same query: a reference, and where there are such, the start model (for a
    drift term) and the policy that drew the images (for a ratio of likelihoods)."""

    reference: Reference
    start: Reference | None = None
    old: Reference | None = None

    def score(self, likelihood: Likelihood, query: Any) -> Compared:
        """Return what each says, without gradient; a reference that also drew the images is asked once."""
        reference = self.reference.score(likelihood, query)
        start, old = (
            other and (reference if other is self.reference else other.score(likelihood, query)) for other in (self.start, self.old)
        )
        return Compared(reference, start, old)

    def driving(self) -> AbstractContextManager[Any]:
        """Give the reference's network."""
        return self.reference.driving()
