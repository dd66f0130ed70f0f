"""Rollouts with noise whose steps are kept, and the likelihood of the kept steps: the policy gradient of a sampler.

The network is asked at the points where the rollout asked it, in the same guidance, so before the first update the ratio of the two
densities is one. Only the steps of the window are kept, three latents each: where a step begins, where it ends, and its mean.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from diffalign.core.errors import ConfigError
from diffalign.core.types import Batch, Compared, Condition, Generator, Predict, Scores, Steps, StoredSteps
from diffalign.models.diffusion.likelihood import Denoise, per_candidate
from diffalign.models.diffusion.path import Path
from diffalign.models.diffusion.random import normal
from diffalign.models.diffusion.sde import Kind, divergence, log_density, step
from diffalign.models.diffusion.self_rollout import guided
from diffalign.models.diffusion.window import window


@dataclass(frozen=True, slots=True, kw_only=True)
class Noisy:
    """How a rollout draws: `level` of noise in the steps of a window, which is trained, and none in the others.

    `size` is how many steps the window has, all but the last if None; it moves on by `move` after every `stay` updates, and begins at
    `start`.
    """

    kind: ClassVar[Kind] = "ode"
    level: float = 0.0
    size: int | None = None
    start: int = 0
    stay: int = 25
    move: int = 1

    def trained(self, update: int, steps: int) -> range:
        """Return the trained steps of a rollout of so many `steps` that is drawn at an update, 0 the one from pure noise.

        The last step is never trained: little or no noise is left there. Raises ConfigError where a rollout has no other.
        """
        if steps < 2:
            raise ConfigError(f"`num_inference_steps` is {steps}; expected at least 2 with `rollout`, for the last step is not trained")
        if self.size is None:
            return range(steps - 1)
        own = window(update, top=steps - 1, size=self.size, stay=self.stay, move=self.move, start=self.start, roll_back=True)
        return own or window(0, top=steps - 1, size=self.size, stay=self.stay, move=self.move, start=self.start)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cps(Noisy):
    """Coefficients-preserving sampling (2509.05952), on any path: the noise level stays the schedule's."""

    kind: ClassVar[Kind] = "cps"
    level: float = 0.8


@dataclass(frozen=True, slots=True, kw_only=True)
class Ddim(Noisy):
    """DDIM with eta `level` (2010.02502), on any path, as DDPO draws."""

    kind: ClassVar[Kind] = "ddim"
    level: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowSde(Noisy):
    """Flow-GRPO's sampler (2505.05470), for flow models."""

    kind: ClassVar[Kind] = "flow_sde"
    level: float = 0.7


@dataclass(frozen=True, slots=True, kw_only=True)
class Dance(Noisy):
    """DanceGRPO's sampler (2505.07818), for flow models."""

    kind: ClassVar[Kind] = "dance"
    level: float = 0.3


ROLLOUTS: dict[str, type[Noisy]] = {"cps": Cps, "ddim": Ddim, "flow_sde": FlowSde, "dance": Dance}


@dataclass(frozen=True, slots=True)
class Rollout:
    """N finished latents and the steps that were kept of them."""

    latents: Tensor  # (N, C, H, W)
    x: Tensor  # (N, S, C, H, W) where each kept step begins
    x_to: Tensor  # (N, S, C, H, W) where it ends
    mean: Tensor  # (N, S, C, H, W) its mean by the network that drew
    t: Tensor  # (N, S)
    to_t: Tensor  # (N, S)
    second: Tensor  # (N, S) the schedule's second time, which stands for 1 in a denominator of flow_sde


@torch.no_grad()
def rollout(x: Tensor, predict: Predict, path: Path, generators: Generator, noisy: Noisy, *, steps: int, kept: range, w: float) -> Rollout:
    """Return a rollout from noise x (N, C, H, W) through `steps` solver steps with guidance weight w (scale minus 1).

    The noise of the `kept` steps is drawn from a generator each latent, so it does not depend on what is drawn beside it.
    """
    path, times = path.at(*x.shape[-2:]), path.solver_times(steps).flip(0).to(x.device)
    shape, x = tuple(x.shape), x[:, None]
    starts, ends, means = [], [], []
    for k in range(steps):
        t, to = (times[place].expand(len(x)) for place in (k, k + 1))
        output = guided(x, t, predict, w)
        mean, std = step(path, x, output, t, to, noisy.kind if k in kept else "ode", noisy.level, second=times[1].expand(len(x)))
        moved = mean
        if k in kept:
            moved = mean + std.view(-1, 1, 1, 1, 1) * normal(shape, generators)[:, None].to(mean)
            for part, value in ((starts, x), (ends, moved), (means, mean)):
                part.append(value[:, 0])
        x = moved
    stacked = (torch.stack(part, dim=1) for part in (starts, ends, means))
    steps_times = (times[list(places)].expand(len(x), -1) for places in (kept, [k + 1 for k in kept], [1] * len(kept)))
    return Rollout(x[:, 0], *stacked, *steps_times)


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
        )
        their = None if others.reference is None else others.reference.log_prob
        return Scores(policy.log_prob, their, batch.prob, labels.weight, labels.offset, columns=labels.columns, steps=steps)

    def predict(self, model: Any, condition: Condition, empty: Condition, frames: Tensor | None) -> Predict:
        """Return the network as a rollout sees it, under the prompts of a batch."""

        def network(x: Tensor, label: Tensor, /, *, empty: bool = False) -> Tensor:
            named: Mapping[str, Tensor] = nothing if empty else condition
            flat = per_candidate(named, frames, x.shape[1])
            return self.denoise(model, x.flatten(0, 1), label.repeat_interleave(x.shape[1]), flat).view_as(x).to(x)

        nothing = {name: value.expand(len(next(iter(condition.values()))), *value.shape[1:]) for name, value in empty.items()}
        return network

    def _duration(self, stored: StoredSteps) -> Tensor:
        """Return how much of the whole time the step takes, (B,)."""
        whole = self.path.solver_times(1)[-1].double()
        return (stored.t - stored.to_t).double() / whole
