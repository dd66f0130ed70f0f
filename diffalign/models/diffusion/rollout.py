"""Pictures drawn by a sampler with noise, whose steps are kept, and the likelihood by which these are trained (DDPO, Flow-GRPO, D3PO).

The policy's replay must be the rollout's own step: before the first update every ratio of likelihoods is 1 (`check_replay`).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Container
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

from diffalign.core.errors import TrainingError
from diffalign.core.types import Compared, Condition, Generator, Labels, Predict, Scores, Steps
from diffalign.models.diffusion.likelihood import Denoise, outputs
from diffalign.models.diffusion.path import Path
from diffalign.models.diffusion.sde import Density, Kind, divergence, log_density, step
from diffalign.models.diffusion.self_rollout import guided


@dataclass(frozen=True, slots=True)
class Sampler:
    """How pictures are drawn; a replay has the same."""

    kind: Kind = "cps"
    level: float = 0.8
    guidance: float = 0.0  # w of output + w (output - output under the empty prompt): the guidance scale minus 1
    density: Density = "density"


@dataclass(frozen=True, slots=True)
class Transition:
    """One stored step of B x K pictures, which is batch and query at once: nothing is random any more."""

    x: Tensor  # (B, K, C, H, W) where it began
    x_to: Tensor  # like x: where it ended
    t: Tensor  # (B,)
    to: Tensor  # (B,)
    old: Tensor  # (B, K) log-density under the policy that drew it
    mean: Tensor  # like x: what that policy expected
    sampler: Sampler  # that drew it
    condition: Condition = field(default_factory=dict)  # (B, ...)
    empty: Condition = field(default_factory=dict)  # (1, ...)
    prob: Tensor | None = None  # (B,)
    labels: Labels = field(default_factory=Labels)
    frames: Tensor | None = None  # (B, K, 6)


@torch.no_grad()
def rollout(
    x: Tensor, predict: Predict, path: Path, times: Tensor, sampler: Sampler, draw: Callable[[int], Tensor], trained: Container[int]
) -> tuple[Tensor, list[Transition]]:
    """Return the pictures' latents (B, K, C, H, W), and the steps that are trained, without conditions and labels.

    Args:
        x: noise (B, K, C, H, W). It is stepped, and kept, in its own precision: a replay from narrower numbers has another ratio.
        predict: the network under the prompts.
        path: its schedule.
        times: (S + 1,) from noise to the image, as `path.solver_times` backwards.
        sampler: of the trained steps; the others are deterministic.
        draw: the noise of a step by its number, like x; of each picture from a generator of its own, so that no picture depends on others.
        trained: numbers of the steps with noise, which are kept. The last one has no density under ddim and cps.
    """
    kept = []
    for place, (begin, end) in enumerate(itertools.pairwise(times)):
        t, to = begin.expand(len(x)), end.expand(len(x))
        output = guided(x, t, predict, sampler.guidance)
        if place not in trained:
            x = step(path, x, output, t, to, "ode", 0.0)[0]
            continue
        mean, std = step(path, x, output, t, to, sampler.kind, sampler.level, second=times[1])
        following = mean + std.view(-1, 1, 1, 1, 1) * draw(place).to(x)
        kept.append(Transition(x, following, t, to, log_density(following, mean, std, sampler.density), mean, sampler))
        x = following
    return x, kept


@dataclass(frozen=True, slots=True)
class Replayed:
    """What a network says of a stored step."""

    mean: Tensor  # (B, K, C, H, W)
    std: Tensor  # (B,)
    score: Tensor  # (B, K) log-density


@dataclass(frozen=True, slots=True)
class StepLikelihood:
    """Log-densities of stored sampler steps, one step of a picture at a time. `second` is the rollout's second time (see `sde.kernel`)."""

    path: Path
    denoise: Denoise
    sampler: Sampler
    second: Tensor | None = None

    def prepare(self, driver: Any, batch: Transition, generator: Generator) -> Transition:  # noqa: ARG002  # the protocol's
        """Return the batch: nothing is drawn."""
        return batch

    def score(self, model: Any, query: Transition) -> Replayed:
        """Return what a network says of the step, in the precision that it was stored in; guidance has a gradient in both branches."""

        def predict(x: Tensor, label: Tensor, /, *, empty: bool = False) -> Tensor:
            nothing = {name: value.expand(len(x), *value.shape[1:]) for name, value in query.empty.items()}
            return outputs(self.denoise, model, x, label, nothing if empty else query.condition, query.frames).to(x)

        output = guided(query.x, query.t, predict, self.sampler.guidance)
        mean, std = step(self.path, query.x, output, query.t, query.to, self.sampler.kind, self.sampler.level, second=self.second)
        return Replayed(mean, std, log_density(query.x_to, mean, std, self.sampler.density))

    def scores(self, policy: Replayed, reference: Any, batch: Transition) -> Scores:
        """Return what the objective sees: the step's log-densities as scores (for `clipped_dpo`, which is D3PO then), and `Steps`."""
        labels, others = batch.labels, reference if isinstance(reference, Compared) else Compared(reference)
        start = others.reference if others.start is None else others.start
        whole = self.path.solver_times(1)[-1].double()
        of_step = {"std": policy.std, "duration": ((batch.t - batch.to).double() / whole).to(policy.std)}
        steps = Steps(
            policy.score[..., None],
            batch.old[..., None],
            **{name: value[:, None, None].expand_as(policy.score[..., None]) for name, value in of_step.items()},
            divergence=divergence(policy.mean, batch.mean, policy.std)[..., None],
            kl=None if start is None else divergence(policy.mean, start.mean, policy.std)[..., None],
        )
        their = None if others.reference is None else others.reference.score
        return Scores(policy.score, their, batch.prob, labels.weight, labels.offset, columns=labels.columns, old=batch.old, steps=steps)


def check_replay(likelihood: StepLikelihood, scores: Scores, batch: Transition, tolerance: float = 1e-5) -> None:
    """Raise TrainingError where the policy, before its first update, does not find the stored steps as likely as when it drew them.

    Call it on the first batch after every rollout. The message names what differs between rollout and replay, or what may. In float32 the
    two agree to about 1e-6; a narrower network needs a larger `tolerance`.
    """
    off = (scores.policy.detach() - batch.old).abs().max().item()
    if off <= tolerance:
        return
    pairs = [(one.name, getattr(batch.sampler, one.name), getattr(likelihood.sampler, one.name)) for one in fields(Sampler)]
    differing = [f"its {name} was {drawn} and is {now}" for name, drawn, now in pairs if drawn != now]
    if batch.x.dtype in (torch.float16, torch.bfloat16):
        differing.append(f"its latents are kept in {batch.x.dtype}".replace("torch.", ""))
    usual = "dropout or train mode, other weights (an average, another adapter), other prompts' embeddings, or another batch size"
    raise TrainingError(
        f"a stored sampler step is replayed with a ratio of {torch.tensor(off).exp().item():.6f} instead of 1 before any update: "
        + ("; ".join(differing) or f"sampler and precision are the same, so look for {usual}")
    )
