"""Advantages: by how much a candidate's reward exceeds what is usual for its prompt, for training online and for tables alike.

Rewards and advantages are float64 arrays (G, K): G prompts, K candidates each. Recipes and their constants are in
docs/objectives.md; every function raises RecordError for rewards that are not finite.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from diffalign.core.errors import ConfigError, RecordError

Spread = Literal["group", "global", "none"]


def advantages(
    rewards: Any, *, spread: Spread = "global", ddof: int = 0, eps: float = 1e-4, floor: float = 0.0, clip: float | None = 5.0
) -> np.ndarray:
    """Return (reward - mean of its group) / (max(standard deviation, floor) + eps), clipped to [-clip, clip].

    A group whose rewards are all equal is zero, whatever the division would make of its rounding. The defaults are those of the releases
    of Flow-GRPO (2505.05470), DiffusionNFT, AWM and DGPO.

    Args:
        rewards: (G, K), of all processes that share the prompts.
        spread: what the deviation is of: the prompt's rewards ("group"), all rewards ("global"), or 1 ("none": Dr. GRPO, 2503.20783).
        ddof: 0 divides the squares by their number (Flow-GRPO), 1 by one less (DanceGRPO, MixGRPO, TRL).
        eps: what is added to the deviation: 1e-4 (Flow-GRPO, TRL), 1e-8 (DanceGRPO, MixGRPO).
        floor: the smallest deviation: 1e-6 in Flow-Factory, which adds nothing.
        clip: None clips nothing.

    Examples:
        >>> advantages([[1.0, 3.0], [5.0, 5.0]], spread="group", eps=0.0)
        array([[-1.,  1.],
               [ 0.,  0.]])
    """
    table = checked(rewards)
    differ = unequal(table)[:, None]
    if not differ.any():
        return np.zeros_like(table)
    numbers = table.shape[1] if spread == "group" else table.size
    if spread != "none" and not 0 <= ddof < numbers:
        raise ConfigError(f"advantages: ddof is {ddof}; expected 0 or 1, and less than the {numbers} rewards that the deviation is of")
    centred = np.where(differ, table - table.mean(axis=1, keepdims=True), 0.0)
    if spread != "none":
        deviation = table.std(axis=1, ddof=ddof, keepdims=True) if spread == "group" else table.std(ddof=ddof)
        centred = np.divide(centred, np.maximum(deviation, floor) + eps, out=np.zeros_like(table), where=differ)
    return centred if clip is None else centred.clip(-clip, clip)


def unequal(rewards: Any) -> np.ndarray:
    """Return which groups (G,) have something to learn from: their largest reward exceeds their smallest."""
    table = checked(rewards)
    return table.max(axis=1) > table.min(axis=1)


def win_fraction(rewards: Any) -> np.ndarray:
    """Return the share (G, K) of the group's other candidates that each beats; ties count one half.

    The reward of self-play against one's own draws (minimaximalist preference optimisation, 2401.04056). A group of one has 1/2.

    >>> win_fraction([[0.1, 0.3, 0.3]])
    array([[0.  , 0.75, 0.75]])
    """
    table = checked(rewards)
    if table.shape[1] == 1:
        return np.full_like(table, 0.5)
    first, second = table[:, :, None], table[:, None, :]
    beaten = (first > second).sum(axis=2) + 0.5 * ((first == second).sum(axis=2) - 1)
    return beaten / (table.shape[1] - 1)


def win_rate(wins: Any) -> np.ndarray:
    """Return the share (K,) of the others that each beats, from judgements of all pairs: wins (K, K), 1, 1/2 or 0, of row over column.

    Pref-GRPO's reward (2508.20751), whose release rounds it to three places.
    """
    table = checked(wins)
    return (table.sum(axis=1) - table.diagonal()) / (len(table) - 1)


def extremes(rewards: Any) -> np.ndarray:
    """Return +1 for the best candidate of each group, -1 for the worst, 0 for the others (G, K): the pair of online DPO.

    The first of equals counts. A group whose rewards are all equal has no pair; Flow-GRPO's release trains an arbitrary one there.
    """
    table = checked(rewards)
    marks, rows = np.zeros_like(table), np.flatnonzero(unequal(table))
    marks[rows, table.argmax(axis=1)[rows]] = 1.0
    marks[rows, table.argmin(axis=1)[rows]] = -1.0
    return marks


def tree_depths(parents: Sequence[int]) -> np.ndarray:
    """Return the depth of every node of a tree, 0 at the root; `parents` are in order: a node's comes before it, and the root's is -1."""
    depths = np.zeros(len(parents), dtype=int)
    for node, parent in enumerate(parents):
        if not -1 <= parent < node or (parent == -1) != (node == 0):
            raise ConfigError(f"node {node} of the tree has parent {parent}; expected an earlier node, and -1 for the first one alone")
        depths[node] = 0 if node == 0 else depths[parent] + 1
    return depths


def tree_values(parents: Sequence[int], leaf_rewards: Any, log_prob: Any = None) -> np.ndarray:
    """Return the value of every node of a tree of rollouts: a leaf's reward, and of other nodes the mean over the leaves below.

    With `log_prob` (one a node, of the step that led to it) a node's value is instead the mean over its children, weighted by the softmax
    of theirs (BranchGRPO, 2509.06040). `leaf_rewards` are in the order of the leaves, which are the nodes without children.
    """
    tree_depths(parents)
    leaves = sorted(set(range(len(parents))) - set(parents))
    rewards = checked([leaf_rewards])[0]
    if len(rewards) != len(leaves):
        raise ConfigError(f"the tree has {len(leaves)} leaves, and there are {len(rewards)} rewards")
    weights, sums = np.zeros(len(parents)), np.zeros(len(parents))
    weights[leaves], sums[leaves] = 1.0, rewards
    for node in reversed(range(1, len(parents))):
        value = sums[node] / weights[node]
        weight = weights[node] if log_prob is None else np.exp(log_prob[node])
        weights[parents[node]] += weight
        sums[parents[node]] += weight * value
    return sums / weights


def tree_advantages(parents: Sequence[int], values: Any, *, eps: float = 1e-8, clip: float | None = 5.0) -> np.ndarray:
    """Return the advantage of every node: its value against those of the same depth, as `advantages` with ddof 1 has it.

    A step of the rollout is trained with the advantage of the node that it leads to. A depth of one node, or whose deviation is below
    1e-6, is zero (BranchGRPO as released).
    """
    depths, nodes = tree_depths(parents), checked([values])[0]
    result = np.zeros_like(nodes)
    for depth in range(depths.max() + 1):
        layer = depths == depth
        if layer.sum() > 1 and nodes[layer].std(ddof=1) >= 1e-6:
            result[layer] = advantages([nodes[layer]], spread="group", ddof=1, eps=eps, clip=clip)[0]
    return result


def checked(rewards: Any) -> np.ndarray:
    """Return rewards as float64 (G, K). Raises ConfigError for another shape, RecordError for the first that is not finite."""
    table = np.asarray(rewards, dtype=np.float64)
    if table.ndim != 2 or table.shape[1] == 0:
        raise ConfigError(f"rewards are of shape (prompts, candidates); found {table.shape}")
    if not np.isfinite(table).all():
        group, candidate = np.argwhere(~np.isfinite(table))[0]
        raise RecordError(f"the reward of candidate {candidate} of prompt {group} is {table[group, candidate]}; expected a finite number")
    return table
