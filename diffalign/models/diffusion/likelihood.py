"""The likelihood of a denoiser: score = -1/2 weight * error, with the mean squared error a Gaussian log-density up to constants.

The mean is over C, H, W, and the one-half is kept: this fixes beta as in the Diffusion-DPO release (2311.12908).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from diffalign.core.types import Batch, Compared, Condition, Generator, Noised, Query, Residuals, Scores
from diffalign.models.diffusion.path import Path, split
from diffalign.models.diffusion.random import uniform

Denoise = Callable[[Any, Tensor, Tensor, Condition], Tensor]  # (model, x (N,C,H,W), t (N,), condition (N,...)) -> output like x


def with_dropped(condition: Condition, empty: Condition, drop: Tensor) -> Condition:
    """Return the condition with the prompts where `drop` (B,) is set replaced by the empty one; all candidates share the draw.

    What the empty prompt has no word for, the evidence of users, stays.
    """
    dropped = {
        name: torch.where(drop.to(value.device).view(-1, *[1] * (value.dim() - 1)), empty[name].to(value), value)
        for name, value in condition.items()
        if name in empty
    }
    return {**condition, **dropped}


def per_candidate(
    condition: Condition, frames: Tensor | None, count: int, conditioning: Tensor | None = None, rows: Tensor | None = None
) -> dict[str, Tensor]:
    """Return the condition (B, ...) of records, the frames (B, K, 6) and the conditioning images (B, K, 3, h, w) of their candidates.

    Each is for the first `count` candidates of the records, or of those whose numbers are `rows`, (B * count, ...), under "frames" and
    "conditioning_image".
    """
    if rows is not None:
        condition = {name: value[rows] for name, value in condition.items()}
        frames, conditioning = (None if value is None else value[rows] for value in (frames, conditioning))
    flat = {name: value.repeat_interleave(count, dim=0) for name, value in condition.items()}
    # A rollout's picture begins as candidate 0, or as noise where the records have no images, and then nothing was cropped.
    for name, value in (("frames", frames), ("conditioning_image", conditioning)):
        if value is not None and value.shape[1] >= count:
            flat[name] = value[:, :count].flatten(0, 1)
    return flat


def squared(path: Path, noised: Noised, output: Tensor) -> Tensor:  # noqa: ARG001  # every error is called alike
    """Return the mean squared error (B, K) of the network's output."""
    return (output - noised.target).square().flatten(2).mean(dim=2)


def pseudo_huber(path: Path, noised: Noised, output: Tensor, *, c: float = 1e-3) -> Tensor:
    """Return 2 mean(sqrt(d^2 + c^2) - c), (B, K), of the difference d between the two estimates of x0 (Self-NPO, 2505.11777)."""
    found, right = (split(path, noised.x_t, o, noised.t)[0] for o in (output, noised.target))
    return 2.0 * (((found - right).square() + c * c).sqrt() - c).flatten(2).mean(dim=2)


ERRORS: dict[str, Callable[..., Tensor]] = {"squared": squared, "pseudo_huber": pseudo_huber}


@dataclass(frozen=True, slots=True)
class Denoised:
    """What a denoiser says of a query, for objectives that compare outputs (fields as those of `Residuals`)."""

    score: Tensor  # (B, K)
    residual: Tensor  # (B, K, C, H, W)
    sigma: Tensor  # (B,)


def joined(parts: Sequence[Any]) -> Any:
    """Return what `score` says of all candidates at once, from what it says of each: tensors (B, K, ...), or dataclasses of such.

    Tensors (B,) are the same for all candidates.
    """
    first = parts[0]
    if isinstance(first, Tensor):
        return first if first.dim() == 1 else torch.cat(list(parts), dim=1)
    return replace(first, **{item.name: joined([getattr(part, item.name) for part in parts]) for item in fields(first)})


@dataclass(frozen=True, slots=True)
class DiffusionLikelihood:
    """Scores of a denoiser along a trajectory.

    `denoise` calls the network; `trajectory` and `error` have their constants bound; `prompt_dropout` is the share of empty prompts. With
    `residuals`, outputs travel beside the scores, so that the objective can compare those of several networks.
    """

    path: Path
    denoise: Denoise
    trajectory: Callable[..., Noised]
    prompt_dropout: float = 0.0
    error: Callable[..., Tensor] = squared
    residuals: bool = False

    @torch.no_grad()
    def prepare(self, driver: Any, batch: Batch, generator: Generator) -> Query:
        """Return the query of a batch; the only place with randomness. `driver` runs the trajectory where it needs a network."""
        if batch.query is not None:
            return batch.query
        condition, dropped = batch.condition, None
        if self.prompt_dropout > 0.0:
            dropped = uniform(len(batch.x0), generator) < self.prompt_dropout
            condition = with_dropped(condition, batch.empty, dropped)

        def predict(x: Tensor, label: Tensor, /, *, empty: bool = False, rows: Tensor | None = None) -> Tensor:
            nothing = {name: value.expand(len(batch.x0), *value.shape[1:]) for name, value in batch.empty.items()}
            # What is computed of outputs is not in half precision.
            return self._outputs(driver, x, label, nothing if empty else condition, batch, rows).to(x)

        path = self.path.at(*batch.x0.shape[-2:])  # a batch holds pictures of one size
        noised = self.trajectory(batch.x0, predict, path, generator)
        return Query(noised, condition, dropped, batch.frames, batch.conditioning)

    def score(self, model: Any, query: Query) -> Any:
        """Return -1/2 weight * error, (B, K), in float32 at least; with `residuals` a `Denoised` that has it."""
        n = query.noised
        output = self._outputs(model, n.x_t, n.t, query.condition, query)
        # Squaring in half precision moves the margin by up to 0.4 at beta 5000.
        wide = torch.promote_types(output.dtype, torch.float32)
        exact = Noised(n.x_t.to(wide), n.t, n.target.to(wide), n.weight.to(wide))
        score = -0.5 * exact.weight[:, None] * self.error(self.path, exact, output.to(wide))
        if not self.residuals:
            return score
        root = exact.weight.sqrt().view(-1, *[1] * (output.dim() - 1))
        return Denoised(score, root * (output.to(wide) - exact.target), self.path.level(n.t)[1].to(score))

    def scores(self, policy: Any, reference: Any, batch: Batch) -> Scores:
        """Return what the objective sees; `reference` is what one network says, what several do (`Compared`), or None."""
        labels, others = batch.labels, reference if isinstance(reference, Compared) else Compared(reference)
        own, their, old = (x.score if isinstance(x, Denoised) else x for x in (policy, others.reference, others.old))
        residuals = None
        if isinstance(policy, Denoised):
            compared = (x.residual if isinstance(x, Denoised) else None for x in (others.reference, others.start))
            residuals = Residuals(policy.residual, policy.sigma, *compared)
        return Scores(own, their, batch.prob, labels.weight, labels.offset, columns=labels.columns, old=old, residuals=residuals)

    def _outputs(self, model: Any, x: Tensor, t: Tensor, condition: Condition, images: Batch | Query, rows: Tensor | None = None) -> Tensor:
        """Return the network's output for all B*K candidates at once, shaped (B, K, C, H, W); `images` has what is said of each."""
        flat = per_candidate(condition, images.frames, x.shape[1], images.conditioning, rows)
        return self.denoise(model, x.flatten(0, 1), t.repeat_interleave(x.shape[1]), flat).view_as(x)
