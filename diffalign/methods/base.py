"""A method: which objective, trajectory, reference and data transforms, by name, with their constants."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from diffalign.objectives.base import Facts, Source

Spec = Mapping[str, Mapping[str, Any]]  # {name: {constant: value}}, one entry


def spec(name: str, **constants: Any) -> Spec:
    """Return the part `name` with its constants."""
    return MappingProxyType({name: MappingProxyType(constants)})


@dataclass(frozen=True, slots=True)
class Method:
    """The parts of one published method; every one can be replaced in a config."""

    paper: str
    source: Source  # how near the paper or its release the parts are
    objective: Spec
    trajectory: Spec  # its `driver`, where it calls a network, is policy | reference | ema
    reference: str  # policy_start (adapter off, or a frozen copy for full fine-tuning) | none
    transforms: tuple[Spec, ...]
    about: str = ""
    error: Spec = field(default_factory=lambda: spec("squared"))
    # plain | negative_guidance: the result is the network of the unconditional branch | user: it also gets the user | reward: it scores
    inference: str = "plain"
    users: Spec | None = None  # the user encoder; None for a method without users
    paper_batch: int | None = None  # records an optimiser step in the published recipe
    facts: Facts | None = None  # what its loss needs, where that is not what the objective needs
