"""From the scores of a turn to one reward and one advantage a picture, and its rank within the prompt."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from diffalign.data.advantages import advantages, win_fraction
from diffalign.data.combiners import Gradient
from diffalign.data.combining import Combiner
from diffalign.data.constraints import Lagrange
from diffalign.methods.config import TrainConfig
from diffalign.rewards.combine import combiner_of

LEARNED: dict[type[Combiner], str] = {Lagrange: "multipliers", Gradient: "weights"}  # the constant that each learns
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
    """The config's combiner and advantages; a combiner that learns is another one in each turn."""

    def __init__(self, config: TrainConfig) -> None:
        self.combiner: Combiner | None = None if config.combine is None else combiner_of(config.combine)
        self.constants = dict(config.advantages)

    def of(self, scores: Mapping[str, np.ndarray], prompts: Sequence[str]) -> Rewards:
        """Return the rewards of a turn's scores (G, K) by name, of candidates to G prompts, and let the combiner learn from them.

        Of one scorer without a combiner the reward is its score, of several the mean share of the prompt's other pictures beaten. In a
        group that is tied, all rewards are the same number, so that no advantage is made of rounding.
        """
        shape = next(iter(scores.values())).shape
        complete = np.asarray(np.isfinite(list(scores.values())).all(axis=(0, 2)))
        result = Rewards(np.full(shape, np.nan), np.full(shape, np.nan), np.ones(shape[0], dtype=bool))
        if not complete.any():
            return result
        own = {name: evened(values[complete]) for name, values in scores.items()}
        rewards = evened(self._combined(own, [prompt for prompt, whole in zip(prompts, complete, strict=True) if whole]))
        if self.combiner is not None:
            self.combiner = self.combiner.updated(own)
        result.rewards[complete], result.advantages[complete] = rewards, advantages(rewards, **self.constants)
        result.tied[complete] = rewards.max(axis=1) == rewards.min(axis=1)
        return result

    def follow(self, influences: Callable[[], Mapping[str, float]]) -> Mapping[str, float]:
        """Let the weights of `gradient` follow the rewards' influences, which are measured for it alone; return the new weights."""
        if not isinstance(self.combiner, Gradient):
            return {}
        self.combiner = self.combiner.followed(influences())
        return self.combiner.weights or {}

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps: the multipliers of `lagrange`, or the weights of `gradient`."""
        return {name: getattr(self.combiner, name) for kind, name in LEARNED.items() if isinstance(self.combiner, kind)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over the state of a checkpoint."""
        if isinstance(self.combiner, Lagrange | Gradient):
            self.combiner = replace(self.combiner, **{LEARNED[type(self.combiner)]: state[LEARNED[type(self.combiner)]]})

    def _combined(self, scores: Mapping[str, np.ndarray], prompts: Sequence[str]) -> np.ndarray:
        if self.combiner is not None:
            return self.combiner.under(scores, prompts)
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
