"""Facts about the keys of a configuration, stated once, in the metadata of the dataclass field: which kinds of model know a key, what
values it may have, and what a change of it changes.

A key is declared as `rank: int = key(8, ABOVE_ZERO)`; without facts a plain default is enough.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from diffalign.core.errors import ConfigError

T = TypeVar("T")
Kind = Literal["image", "text", "reward"]
ANY: tuple[Kind, ...] = ("image", "text", "reward")
GENERATORS: tuple[Kind, ...] = ("image", "text")
# What a change of a key changes: the model itself, the data, how it is trained, or nothing in the result.
Changes = Literal["model", "data", "training", "nothing"]


@dataclass(frozen=True, slots=True)
class Range:
    """The values that a key may have, and how an error calls them. None always passes."""

    holds: Callable[[Any], bool]
    expected: str


ABOVE_ZERO = Range(lambda v: 0 < v < math.inf, "a finite number above zero")
AT_LEAST_ONE = Range(lambda v: 1 <= v < math.inf, "at least 1")
GROUP = Range(lambda v: 2 <= v <= 64, "2 to 64, for pictures of a prompt are compared")
NOT_NEGATIVE = Range(lambda v: 0 <= v < math.inf, "zero or more")
FINITE = Range(lambda v: -math.inf < v < math.inf, "a finite number")
SHARE = Range(lambda v: 0 <= v <= 1, "a share in [0, 1]")
SHARE_BELOW_ONE = Range(lambda v: 0 <= v < 1, "a share in [0, 1)")
INSIDE_SHARE = Range(lambda v: 0 < v < 1, "a number above 0 and below 1")
SHARE_BELOW_HALF = Range(lambda v: 0 <= v < 0.5, "a share in [0, 0.5)")


@dataclass(frozen=True, slots=True)
class KeyFacts:
    """What is known of a key besides its name, type, default and help."""

    range: Range | None = None
    kinds: tuple[Kind, ...] = GENERATORS
    trait: str | None = None  # a trait that the model's layout must have: flow, guidance, t5
    resume: bool = False  # whether a run that goes on from a checkpoint must have the same value
    changes: Changes = "training"
    uses: tuple[str, ...] = ()  # who else reads the key, by a word: see `keys_for`


def key(
    default: T,
    range: Range | None = None,  # noqa: A002  # as one speaks of it
    *,
    kinds: tuple[Kind, ...] = GENERATORS,
    trait: str | None = None,
    resume: bool = False,
    changes: Changes = "training",
    uses: tuple[str, ...] = (),
) -> T:
    """Return a dataclass field with facts; to a type checker it is its default. A list or dict is copied for every config."""
    metadata = {"facts": KeyFacts(range, kinds, trait, resume, changes, uses)}
    made: Any = (
        field(default_factory=lambda: type(default)(default), metadata=metadata)  # pyright: ignore[reportCallIssue]  # a list or a dict
        if isinstance(default, list | dict)
        else field(default=default, metadata=metadata)
    )
    return made


def facts_of(config: Any) -> dict[str, KeyFacts]:
    """Return the facts of every key of a config (or its class), by name."""
    return {item.name: item.metadata.get("facts", KeyFacts()) for item in dataclasses.fields(config)}


def keys_for(config: Any, use: str) -> tuple[str, ...]:
    """Return the keys of a config (or its class) that have a use, in their order."""
    return tuple(name for name, facts in facts_of(config).items() if use in facts.uses)


def default_of(item: dataclasses.Field[Any]) -> Any:
    """Return the default of a field, MISSING where it has none."""
    return item.default if item.default_factory is dataclasses.MISSING else item.default_factory()


def changed(config: Any) -> Iterator[str]:
    """Yield the keys of a config whose values are not their defaults."""
    return (item.name for item in dataclasses.fields(config) if getattr(config, item.name) != default_of(item))


def check_ranges(config: Any) -> None:
    """Raise ConfigError for the first value outside its range."""
    for name, facts in facts_of(config).items():
        if facts.range is not None:
            require(name, getattr(config, name), facts.range.holds, facts.range.expected)


def require(name: str, value: Any, holds: Callable[[Any], bool], expected: str) -> None:
    """Raise ConfigError for a value that is given and does not hold."""
    if value is not None and not holds(value):
        raise ConfigError(f"`{name}` is {value!r}; expected {expected}")
