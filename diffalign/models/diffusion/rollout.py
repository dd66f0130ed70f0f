"""Rollouts with noise whose steps are kept, and the likelihood of the kept steps: the policy gradient of a sampler.

The network is asked at the points where the rollout asked it, in the same guidance, so before the first update the ratio of the two
densities is one. Only the steps of the window are kept, three latents each: where a step begins, where it ends, and its mean.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from diffalign.core.types import Batch, Compared, Condition, Generator, Predict, Scores, Steps, StoredSteps
from diffalign.models.diffusion.likelihood import Denoise, per_candidate
from diffalign.models.diffusion.path import Path
from diffalign.models.diffusion.random import normal
from diffalign.models.diffusion.rollout_plan import Plan
from diffalign.models.diffusion.sde import Kind, divergence, log_density, step
from diffalign.models.diffusion.self_rollout import guided


@dataclass(frozen=True, slots=True)
class Rollout:
    """N finished latents and the steps that were kept of them; those that are shared, near the root of a tree, stand with each."""

    latents: Tensor  # (N, C, H, W)
    x: Tensor  # (N, S, C, H, W) where each kept step begins
    x_to: Tensor  # (N, S, C, H, W) where it ends
    mean: Tensor  # (N, S, C, H, W) its mean by the network that drew
    t: Tensor  # (N, S)
    to_t: Tensor  # (N, S)
    second: Tensor  # (N, S) the schedule's second time, which stands for 1 in a denominator of flow_sde
    log_prob: Tensor | None  # (N, D) of trees, the log-density of every step with noise


@torch.no_grad()
def rollout(
    x: Tensor,
    predict: Predict,
    path: Path,
    generators: Sequence[torch.Generator],
    plan: Plan,
    *,
    w: float,
    begins: Callable[[int], None] | None = None,
) -> Rollout:
    """Return the leaves of the trees that grow from noise x (B, C, H, W), with guidance weight w (scale minus 1).

    All nodes of a depth are drawn together. There is a generator for each of the N = B * leaves pictures; the noise of a node comes from
    that of the first picture below it, so it does not depend on what is drawn beside its tree. `begins` hears each step's number first.
    """
    path, times = path.at(*x.shape[-2:]), path.solver_times(plan.steps).flip(0).to(x.device)
    second, leaves = times[1].expand(len(x)), plan.leaves
    count, x = len(x) * leaves, x[:, None]
    kept: tuple[list[Tensor], ...] = ([], [], [])  # where steps begin, where they end, their means
    log_prob = list[Tensor]()
    for k in range(plan.steps):
        if begins is not None:
            begins(k)
        t, to = (times[place].expand(len(x)) for place in (k, k + 1))
        kind, children = plan.kind if k in plan.noisy else "ode", plan.splits.get(k, 1)
        mean, std = step(path, x, guided(x, t, predict, w), t, to, kind, plan.level, second=second)
        x, mean = x.repeat_interleave(children, dim=1), mean.repeat_interleave(children, dim=1)
        moved = mean
        if k in plan.noisy:
            moved = mean + (plan.noise_scale if children > 1 else 1.0) * std.view(-1, 1, 1, 1, 1) * _noise(mean, generators)
            if plan.splits:
                log_prob.append(_by_leaf(log_density(moved, mean, std), leaves))
        if k in plan.kept:
            for part, value in zip(kept, (x, moved, mean), strict=True):
                part.append(_by_leaf(value, leaves))
        x = moved
    starts, ends, means = (torch.stack(part, dim=1) for part in kept)
    places = (plan.kept, [k + 1 for k in plan.kept], [1] * len(plan.kept))
    t, to, second = (times[list(steps)].expand(count, -1) for steps in places)
    return Rollout(_by_leaf(x, leaves), starts, ends, means, t, to, second, torch.stack(log_prob, dim=1) if log_prob else None)


def _by_leaf(nodes: Tensor, leaves: int) -> Tensor:
    """Return what nodes (B, n, ...) have for each picture below them, (B * leaves, ...)."""
    return nodes.repeat_interleave(leaves // nodes.shape[1], dim=1).flatten(0, 1)


def _noise(mean: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """Return noise like mean (B, n, C, H, W): that of a node is drawn by the generator of the first picture below it."""
    nodes = mean.shape[0] * mean.shape[1]
    return normal((nodes, *mean.shape[2:]), generators[:: len(generators) // nodes]).view_as(mean).to(mean)


@dataclass(frozen=True, slots=True)
class Replayed:
    """What a network says of a stored step."""

    log_prob: Tensor  # (B, K)
    mean: Tensor  # (B, K, C, H, W)
    std: Tensor  # (B,)


@dataclass(frozen=True, slots=True)
class StepQuery:
    """A stored step with the prompts that it was drawn under; nothing is random."""

    stored: StoredSteps
    condition: Condition
    empty: Condition
    frames: Tensor | None = None

    @property
    def x(self) -> Tensor:
        """Return where the network is asked, (B, K, C, H, W)."""
        return self.stored.x

    def candidate(self, k: int) -> StepQuery:
        """Return the query of candidate `k` alone."""
        s, place = self.stored, slice(k, k + 1)
        advantage, frames = (None if value is None else value[:, place] for value in (s.advantage, self.frames))
        stored = replace(s, x=s.x[:, place], x_to=s.x_to[:, place], mean=s.mean[:, place], advantage=advantage)
        return replace(self, stored=stored, frames=frames)


@dataclass(frozen=True, slots=True)
class StepLikelihood:
    """Log-densities of stored sampler steps, one step a record and call.

    `denoise` calls the network; `kind` and `level` are those of the rollout, as is the guidance weight `w` (scale minus 1).
    """

    path: Path
    denoise: Denoise
    kind: Kind
    level: float
    w: float

    def prepare(self, driver: Any, batch: Batch, generator: Generator) -> StepQuery:  # noqa: ARG002  # the protocol's
        """Return the stored step of a batch. Raises ValueError for a batch that has none."""
        if batch.steps is None:
            raise ValueError("this likelihood is of stored sampler steps, and the batch has none")
        return StepQuery(batch.steps, batch.condition, batch.empty, batch.frames)

    def score(self, model: Any, query: StepQuery) -> Replayed:
        """Return the log-density (B, K) of the stored step under a network, with its gradient, in float32 at least."""
        stored = query.stored
        output = guided(stored.x, stored.t, self.predict(model, query.condition, query.empty, query.frames), self.w)
        path = self.path.at(*stored.x.shape[-2:])
        wide = output.to(torch.promote_types(output.dtype, torch.float32))
        mean, std = step(path, stored.x, wide, stored.t, stored.to_t, self.kind, self.level, second=stored.second)
        return Replayed(log_density(stored.x_to, mean, std, "bare" if self.kind == "cps" else "density"), mean, std)

    def scores(self, policy: Replayed, reference: Any, batch: Batch) -> Scores:
        """Return what the objective sees: `steps` of one stored step, whose old log-density is that of the mean that was kept.

        The scores are its log-densities, too. The KL is from the start model where that is another one than the reference.
        """
        stored, labels = batch.steps, batch.labels
        others = reference if isinstance(reference, Compared) else Compared(reference)
        start = others.reference if others.start is None else others.start
        assert stored is not None  # `prepare` has refused other batches
        form = "bare" if self.kind == "cps" else "density"
        old = log_density(stored.x_to, stored.mean, policy.std, form)
        shape = policy.log_prob.shape
        steps = Steps(
            policy.log_prob[:, :, None],
            old=old[:, :, None],
            std=policy.std[:, None].expand(shape)[:, :, None],
            duration=self._duration(stored)[:, None].to(old).expand(shape)[:, :, None],
            divergence=divergence(policy.mean, stored.mean, policy.std)[:, :, None],
            kl=None if start is None else divergence(policy.mean, start.mean, policy.std)[:, :, None],
            advantage=None if stored.advantage is None else stored.advantage.to(old)[:, :, None],
        )
        their = None if others.reference is None else others.reference.log_prob
        return Scores(policy.log_prob, their, batch.prob, labels.weight, labels.offset, columns=labels.columns, steps=steps)

    def predict(self, model: Any, condition: Condition, empty: Condition, frames: Tensor | None) -> Predict:
        """Return the network as a rollout sees it, under the prompts of a batch."""

        def network(x: Tensor, label: Tensor, /, *, empty: bool = False, rows: Tensor | None = None) -> Tensor:
            named: Mapping[str, Tensor] = nothing if empty else condition
            flat = per_candidate(named, frames, x.shape[1], rows=rows)
            return self.denoise(model, x.flatten(0, 1), label.repeat_interleave(x.shape[1]), flat).view_as(x).to(x)

        nothing = {name: value.expand(len(next(iter(condition.values()))), *value.shape[1:]) for name, value in empty.items()}
        return network

    def _duration(self, stored: StoredSteps) -> Tensor:
        """Return how much of the whole time the step takes, (B,)."""
        whole = self.path.solver_times(1)[-1].double()
        return (stored.t - stored.to_t).double() / whole
