"""What every way to combine rewards is and reads: each reward is (G, K), by name: G prompts, K candidates; so is the result."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from diffalign.core.errors import ConfigError, shortened
from diffalign.data.advantages import checked

Rewards = Mapping[str, Any]  # (G, K) each
Numbers = Mapping[str, float]  # a constant by the name of its reward
Scope = Literal["image", "prompt", "all"]


class Combiner(ABC):
    """What every combiner does."""

    __slots__ = ()

    @property
    def scope(self) -> Scope:
        """Return whose rewards a combined one depends on: the candidate's own (image), its prompt's, or those of all prompts."""
        return "image"

    @abstractmethod
    def combine(self, rewards: Rewards) -> np.ndarray:
        """Return one reward (G, K). Raises ConfigError for rewards that it has no constants for, or constants of no reward."""

    def under(self, rewards: Rewards, prompts: Sequence[str]) -> np.ndarray:  # noqa: ARG002  # of one that reads them
        """Return one reward (G, K) of candidates to G prompts; most combiners do not read these."""
        return self.combine(rewards)

    def updated(self, rewards: Rewards) -> Combiner:  # noqa: ARG002  # of those that learn
        """Return the combiner of the next set of pictures, of what the rewards of this one are."""
        return self

    def check(self, names: Sequence[str]) -> None:
        """Raise ConfigError for constants that do not fit rewards of these names, before there are any."""
        self.combine({name: np.ones((1, 2)) for name in names})


def tables_of(rewards: Rewards) -> dict[str, np.ndarray]:
    """Return the rewards as float64 (G, K). Raises ConfigError where there is none, or where they are of unlike shapes."""
    tables = {name: checked(table) for name, table in rewards.items()}
    shapes = {table.shape for table in tables.values()}
    if len(shapes) != 1:
        raise ConfigError(f"rewards of one shape (prompts, candidates) are combined; found {sorted(shapes) or 'none'}")
    return tables


def constants_of(
    constant: str, values: Mapping[str, Any] | None, names: Mapping[str, Any], usual: float | None = None, *, above: float = -math.inf
) -> dict[str, Any]:
    """Return a constant for each of `names`.

    Raises ConfigError for one of no reward, for what is no finite number `above` another, and for a missing one where none is usual.
    """
    values = values or {}
    if wrong := next((name for name, value in values.items() if not _above(value, above)), None):
        expected = "a finite number" if above == -math.inf else f"a number above {above:g}"
        raise ConfigError(f"`{constant}`: that of `{wrong}` is {shortened(repr(values[wrong]))}; expected {expected}")
    if odd := sorted(values.keys() - names.keys()):
        raise ConfigError(f"`{constant}` names `{odd[0]}`, which is no reward; there are {sorted(names)}")
    if usual is None and (missing := sorted(names.keys() - values.keys())):
        raise ConfigError(f"`{constant}` has no number for the reward `{missing[0]}`")
    return {name: values.get(name, usual) for name in names}


def _above(value: Any, least: float) -> bool:
    """Return whether a value is a finite number above `least`, or a list of such."""
    try:
        numbers = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        return False
    return not isinstance(value, str) and bool(np.isfinite(numbers).all() and (numbers > least).all())
