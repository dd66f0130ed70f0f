"""Memory of each process of a launch that spreads a model's weights over all of them (FSDP2), by arithmetic on the rows of a dry run."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import nn

from diffalign.methods.builders import dry_run
from diffalign.methods.builders.meta_model import Outline
from diffalign.methods.config import TrainConfig
from diffalign.methods.recipe import Recipe
from diffalign.models.sharded import blocks


def memory_by_rank(
    config: TrainConfig, recipe: Recipe, outline: Outline, processes: int, candidates: int = 2, *, inputs: bool = False
) -> list[tuple[str, float]]:
    """Return (what, bytes) of everything on the device of one of `processes` in a training step; rows are those of `dry_run.memory`.

    Weights, gradients, optimiser state, moving average and the reference are divided; activations are each process's own. What is
    gathered comes on top: see `gathered`.
    """
    shares = [(what, size / processes) for what, size in dry_run.held(config, recipe, outline)]
    own = dry_run.worked_in(config, recipe, outline, candidates, inputs=inputs, spread=True)
    return [*shares, *own, ("gathered: two blocks, and one's gradients", float(gathered(outline.model.denoiser)))]


def gathered(network: nn.Module) -> int:
    """Return the bytes that a process gathers of a spread network at most at once.

    These are the parameters outside of all blocks, which are whole while the network runs; the largest block, with what it lies in; as
    much again for the block that is fetched while it computes; and the gradients of the largest before each process takes its share.
    """
    root, *units = _units(network)
    return root.whole + 2 * max((unit.chain for unit in units), default=0) + max(unit.trained for unit in (root, *units))


@dataclass(slots=True)
class _Unit:
    """What is gathered and given up as one."""

    outer: _Unit | None
    whole: int = 0  # bytes of the parameters that are in no inner unit
    trained: int = 0  # bytes of those that get a gradient
    seen: set[int] = field(default_factory=set)  # parameters of the whole network, of which each counts once

    @property
    def chain(self) -> int:
        """Return the bytes of the unit and of the blocks that it lies in."""
        return self.whole + (self.outer.chain if self.outer is not None and self.outer.outer is not None else 0)


def _units(network: nn.Module) -> list[_Unit]:
    """Return the units of a network: that of the network itself, for what is in no block, and those of its blocks."""
    starts, units = {id(block) for block in blocks(network)}, [_Unit(None)]

    def visit(module: nn.Module, unit: _Unit) -> None:
        if id(module) in starts:
            units.append(unit := _Unit(unit, seen=unit.seen))
        for parameter in module.parameters(recurse=False):
            if id(parameter) not in unit.seen:
                unit.seen.add(id(parameter))
                size = parameter.numel() * parameter.element_size()
                unit.whole, unit.trained = unit.whole + size, unit.trained + size * parameter.requires_grad
        for child in module.children():
            visit(child, unit)

    visit(network, units[0])
    return units
