"""From the scores of a turn to one reward and one advantage a picture, and its rank within the prompt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from diffalign.core.specs import bind
from diffalign.data.advantages import advantages, win_fraction
from diffalign.data.combiners import COMBINERS, Combiner, Lagrange
from diffalign.methods.config import TrainConfig

NOISE = 1e-6  # differences below it, times the largest reward where that is above 1, are rounding and no preference


@dataclass(frozen=True, slots=True)
class Rewards:
    """What is learned from a turn: (G, K) each, NaN in the row of a prompt with a picture that a scorer cannot judge."""

    rewards: np.ndarray
    advantages: np.ndarray
    tied: np.ndarray  # (G,) whether the rewards of all its pictures are the same, but for rounding

    @property
    def complete(self) -> np.ndarray:
        """Return which prompts (G,) have pictures that were all judged."""
        return np.asarray(np.isfinite(self.rewards).all(axis=1))


class Combination:
    """The config's combiner and advantages; a combiner that learns (`lagrange`) is another one after each turn."""

    def __init__(self, config: TrainConfig) -> None:
        self.combiner: Combiner | None = None if config.combine is None else bind("combiner", COMBINERS, config.combine)()
        self.constants = dict(config.advantages)

    def of(self, scores: Mapping[str, np.ndarray]) -> Rewards:
        """Return the rewards of a turn's scores (G, K) by name, and let the combiner learn from them.

        Of one scorer without a combiner the reward is its score, of several the mean share of the prompt's other pictures beaten. In a
        group that is tied, all rewards are the same number, so that no advantage is made of rounding.
        """
        shape = next(iter(scores.values())).shape
        complete = np.isfinite(list(scores.values())).all(axis=(0, 2))
        result = Rewards(np.full(shape, np.nan), np.full(shape, np.nan), np.ones(shape[0], dtype=bool))
        if not complete.any():
            return result
        own = {name: evened(values[complete]) for name, values in scores.items()}
        rewards = evened(self._combined(own))
        if self.combiner is not None:
            self.combiner = self.combiner.updated(own)
        result.rewards[complete], result.advantages[complete] = rewards, advantages(rewards, **self.constants)
        result.tied[complete] = rewards.max(axis=1) == rewards.min(axis=1)
        return result

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps: the multipliers of `lagrange`."""
        return {"multipliers": asdict(self.combiner)["multipliers"]} if isinstance(self.combiner, Lagrange) else {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over the state of a checkpoint."""
        if isinstance(self.combiner, Lagrange):
            self.combiner = replace(self.combiner, multipliers=state["multipliers"])

    def _combined(self, scores: Mapping[str, np.ndarray]) -> np.ndarray:
        if self.combiner is not None:
            return self.combiner.combine(scores)
        if len(scores) == 1:
            return next(iter(scores.values()))
        return np.mean([win_fraction(values) for values in scores.values()], axis=0)


def evened(rewards: np.ndarray) -> np.ndarray:
    """Return rewards (G, K) in which a group that differs by rounding alone has its mean everywhere.

    >>> evened(np.array([[0.5, 0.5 + 1e-7], [0.5, 0.75]])).round(6).tolist()
    [[0.5, 0.5], [0.5, 0.75]]
    """
    spread = rewards.max(axis=1) - rewards.min(axis=1)
    same = spread <= NOISE * np.abs(rewards).max(initial=1.0)
    return np.where(same[:, None], rewards.mean(axis=1, keepdims=True), rewards)


def ranks(rewards: np.ndarray) -> np.ndarray:
    """Return the rank (K,) of each picture of a prompt, 1 for the best; equal ones share the smallest."""
    return 1.0 + (rewards[None, :] > rewards[:, None]).sum(axis=1)
