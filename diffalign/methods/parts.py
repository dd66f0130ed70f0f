"""What a training step uses. A builder of `methods.builders` makes it from a recipe; the trainer knows nothing else of a method."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from diffalign.core.keys import Kind
from diffalign.core.parts import Index, Pairs
from diffalign.core.types import Condition, Likelihood, Reference
from diffalign.methods.recipe import Recipe


class Turns(Protocol):
    """What draws a run's data while it trains, or does something else between its steps (`train.stages`)."""

    @property
    def stopped(self) -> str | None:
        """Return why there is nothing more to learn, None as long as there is."""
        ...

    def begin(self, step: int) -> None:
        """Remove what an interrupted run drew at `step` or later."""
        ...

    def turn(self, step: int, drawing: Callable[[], AbstractContextManager[nn.Module]], parts: Parts) -> dict[str, float]:
        """Draw anew if a turn begins at `step`, with the network that `drawing` gives; return what is logged of it.

        `parts` are those of the run, whose loss combiners that follow gradients differentiate.
        """
        ...

    def pace(self) -> dict[str, str]:
        """Return what the progress shows of drawing."""
        ...

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        ...

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over the state of a checkpoint."""
        ...

    def finish(self, step: int) -> dict[str, Any]:
        """Put the data of all turns together after the last step, and return what run.json says of them."""
        ...


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts of one run, loaded."""

    kind: Kind
    recipe: Recipe
    backbone: Any  # a Trained; of image models a Backbone
    likelihood: Likelihood
    reference: Reference
    pairs: Pairs
    table: str  # fingerprint of the table of records
    index: Callable[[int], Index] | None = None  # of a sample, where not simply every record is sampled once an epoch
    penalty: Callable[[Condition, float], dict[str, Tensor]] | None = None  # of a batch's condition, at a share of the run
    facts: Mapping[str, Any] = field(default_factory=dict)  # what run.json and checkpoints say besides
    usage: Mapping[str, Any] = field(default_factory=dict)  # what run.json says of the table's records: see `data.usage`
    groups: list[dict[str, Any]] | None = None  # of parameters, for the optimiser, where they do not all learn alike
    measure: Callable[[Path], Mapping[str, Any]] | None = None  # what is measured of the result before run.json is written
    anchor: Parts | None = (
        None  # of what keeps the policy where it is on other prompts; only its own likelihood, reference and pairs differ
    )
    live: bool = False  # whether pictures and prompts are encoded in every step, so that the encoders stay where they are
    turns: Turns | None = None  # what draws `pairs` anew, or renews the reference, as the run goes on; None for most data
