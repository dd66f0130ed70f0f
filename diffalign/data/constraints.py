"""One reward raised while others are kept above, or below, a threshold: combiners by Lagrange multipliers."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from diffalign.core.errors import ConfigError
from diffalign.data.combining import Combiner, Numbers, Rewards, Scope, constants_of, tables_of

Sense = Literal["at_least", "at_most"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Lagrange(Combiner):
    """The reward without a threshold plus, for every other, multiplier * (reward - threshold), minus for sense `at_most`.

    A multiplier begins at 0 and grows by `rate` times what its reward's mean lacks of the threshold, within [0, top]. `normalised` divides
    by one plus the multipliers, which keeps the scale. A plain form of ours of constrained rewards (2310.04373, where each is kept from
    exceeding the value at which it ceases to agree with people: `at_most`).
    """

    thresholds: Numbers
    sense: Sense = "at_least"
    rate: float = 0.1
    top: float = 10.0
    normalised: bool = True
    multipliers: Numbers | None = None

    def combine(self, rewards: Rewards) -> np.ndarray:
        """Return the reward (G, K) under the multipliers as they are."""
        tables = tables_of(rewards)
        main, multipliers = tables[_main(tables, self.thresholds)], constants_of("multipliers", self.multipliers, self.thresholds, 0.0)
        terms = [self._sign * factor * (tables[name] - self.thresholds[name]) for name, factor in multipliers.items()]
        total = main + np.sum(terms, axis=0)
        return total / (1.0 + sum(multipliers.values())) if self.normalised else total

    def updated(self, rewards: Rewards) -> Lagrange:
        """Return the combiner with its multipliers one step further, by the means of these rewards."""
        tables, multipliers = tables_of(rewards), constants_of("multipliers", self.multipliers, self.thresholds, 0.0)
        lacks = {name: self._sign * (threshold - tables[name].mean()) for name, threshold in self.thresholds.items()}
        moved = {name: float(np.clip(multipliers[name] + self.rate * lack, 0.0, self.top)) for name, lack in lacks.items()}
        return replace(self, multipliers=moved)

    @property
    def _sign(self) -> float:
        return 1.0 if self.sense == "at_least" else -1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Cfo(Combiner):
    """The reward without a threshold, minus `cfo_multiplier` wherever another is below its threshold.

    The multiplier is that of Flow-GRPO's release (its `compute_lambda`); that it is subtracted from violating candidates is our reading.
    """

    thresholds: Numbers
    alpha: float = 0.5
    tolerance: float = 0.1

    @property
    def scope(self) -> Scope:
        """Return that the multiplier is of all candidates that are there, at least those of a prompt."""
        return "prompt"

    def combine(self, rewards: Rewards) -> np.ndarray:
        """Return the reward (G, K)."""
        tables = tables_of(rewards)
        main = tables[_main(tables, self.thresholds)]
        safe = np.all([tables[name] >= threshold for name, threshold in self.thresholds.items()], axis=0)
        return main - cfo_multiplier(main, safe, alpha=self.alpha, tolerance=self.tolerance) * ~safe


def cfo_multiplier(rewards: Any, safe: Any, *, alpha: float = 0.5, tolerance: float = 0.1) -> float:
    """Return the dual of a chance constraint in closed form: alpha max(0, log((1 - b) A / (b B))), b the `tolerance`.

    A and B are sums of exp(reward / alpha) over violating and safe candidates; 10 alpha where none is safe. The release adds 1e-10 to b B.

    Only logs of the sums are taken, which large rewards leave finite:

    >>> cfo_multiplier([[2000.0, 1000.0]], [[False, True]], alpha=1.0, tolerance=0.5)
    1000.0
    """
    if not alpha > 0.0 or not 0.0 < tolerance < 1.0:
        raise ConfigError(f"`cfo`: alpha is {alpha} and tolerance {tolerance}; expected above 0, and between 0 and 1")
    table, good = np.asarray(rewards, dtype=np.float64) / alpha, np.asarray(safe, dtype=bool)
    if not good.any():
        return 10.0 * alpha
    if good.all():
        return 0.0
    violating, meeting = (float(np.logaddexp.reduce(table[part])) for part in (~good, good))
    needed = np.logaddexp(math.log(tolerance) + meeting, math.log(1e-10))
    return alpha * max(0.0, float(math.log(1.0 - tolerance) + violating - needed))


def _main(tables: Rewards, thresholds: Numbers) -> str:
    """Return the one reward that has no threshold. Raises ConfigError for none or several."""
    constants_of("thresholds", thresholds, tables, 0.0)
    free = sorted(tables.keys() - thresholds.keys())
    if len(free) != 1 or not thresholds:
        raise ConfigError(f"`thresholds` leave out one reward, the one to raise, and no other; here they leave out {free or 'none'}")
    return free[0]
