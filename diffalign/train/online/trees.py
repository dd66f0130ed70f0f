"""What is learned from the trees of a turn (BranchGRPO): the advantage of every kept step, and which pictures' steps are trained.

A step is kept with each picture behind it, and trained once, with the first of them: so all steps count the same, as released, and behind
the last split there are as many of them as pictures.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from diffalign.data.advantages import tree_advantages, tree_values
from diffalign.models.diffusion.rollout_plan import Branch, Plan


@dataclass(frozen=True, slots=True)
class Grown:
    """What is learned from G trees with K leaves each and S kept steps."""

    advantage: np.ndarray  # (G, K, S) of the node that each step leads to, among those of its depth
    trained: np.ndarray  # (G, K, S) whether the step is trained with this picture
    leaves: np.ndarray  # (G, K) advantage of the pictures


def grown(branch: Branch, plan: Plan, rewards: np.ndarray, log_prob: np.ndarray) -> Grown:
    """Return what is learned of the leaves' rewards (G, K), and log_prob (G, K, D) of the steps with noise.

    Trees with a reward that is not finite have advantages of zero.
    """
    own = np.stack([_nodes(branch, plan, *tree) for tree in zip(rewards, log_prob, strict=True)])  # (G, nodes)
    firsts, leaves = list(accumulate(plan.widths, initial=0)), plan.leaves
    advantage, trained = (np.zeros((len(rewards), leaves, len(plan.kept)), dtype=kind) for kind in (float, bool))
    chosen = np.stack([_kept_leaves(branch, nodes[firsts[-2] :]) for nodes in own])
    for place, k in enumerate(plan.kept):
        span = leaves // plan.widths[k + 1]  # pictures below each node
        advantage[:, :, place] = own[:, firsts[k + 1] : firsts[k + 2]].repeat(span, axis=1)
        trained[:, ::span, place] = True
        if k > max(plan.splits):
            trained[:, :, place] &= chosen
    return Grown(advantage, trained, own[:, firsts[-2] :])


def trained_nodes(branch: Branch, plan: Plan) -> list[int]:
    """Return how many steps of a tree are trained at each kept step: as many as it has nodes there, but for those that are pruned."""
    some = grown(branch, plan, np.arange(plan.leaves, dtype=float)[None], np.zeros((1, plan.leaves, len(plan.noisy))))
    return some.trained[0].sum(axis=0).tolist()


def _nodes(branch: Branch, plan: Plan, rewards: np.ndarray, log_prob: np.ndarray) -> np.ndarray:
    """Return the advantage of every node of a tree, of its leaves' rewards (K,) and log_prob (K, D)."""
    parents = plan.parents
    if not np.isfinite(rewards).all():
        return np.zeros(len(parents))
    weights = None
    if branch.values == "softmax":
        columns = [log_prob[:: plan.leaves // width, k] for k, width in enumerate(plan.widths[1 : 1 + len(plan.noisy)])]
        certain = plan.leaves * (plan.steps - len(plan.noisy))  # nodes behind steps without noise, each a child alone
        weights = np.concatenate([np.zeros(1), *columns, np.zeros(certain)])
    return tree_advantages(parents, tree_values(parents, rewards, weights))


def _kept_leaves(branch: Branch, advantages: np.ndarray) -> np.ndarray:
    """Return which leaves (K,) width pruning leaves, of their advantages; the first of equals."""
    kept = np.ones(len(advantages), dtype=bool)
    if branch.width_pruning is None:
        return kept
    if branch.width_pruning == "best":
        siblings = advantages.reshape(-1, branch.children_at[max(branch.splits)])
        rank = (-siblings).argsort(axis=1, kind="stable").argsort(axis=1, kind="stable")
        return (rank < max(1, siblings.shape[1] // 2)).ravel()
    best_first, left = (-advantages).argsort(kind="stable"), max(2, len(advantages) // 2)
    kept[best_first[left // 2 : len(advantages) - (left - left // 2)]] = False
    return kept
