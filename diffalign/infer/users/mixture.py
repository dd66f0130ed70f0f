"""Fits a new user of the encoder `mixture`: the weights of its prototypes, by the run's objective on the user's pairs, all else frozen."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from diffalign.core.progress import progress
from diffalign.core.types import Batch, Scores
from diffalign.data.pixels import center_crop
from diffalign.models.backbones.base import Backbone
from diffalign.models.diffusion.likelihood import DiffusionLikelihood
from diffalign.models.reference import AdapterOff
from diffalign.models.users import branch
from diffalign.models.users.choices import Choice
from diffalign.models.users.encoders import MixtureEncoder


@torch.enable_grad()
def fit_weights(
    model: Backbone,
    encoder: MixtureEncoder,
    choices: Sequence[Choice],
    likelihood: DiffusionLikelihood,
    objective: Callable[[Scores], Tensor],
    *,
    compares: bool = True,
    steps: int = 60,
    draws: int = 8,
    learning_rate: float = 0.1,
    seed: int = 0,
) -> Tensor:
    """Return the weights (P,) of a user, which sum to one: by Adam from those of the usual training user (PAL's fit of a new user).

    A step takes every pair at `draws` times, under what noise `likelihood` gives (`Personal`: plain noise, whatever the run's trajectory);
    without `compares` there is no reference. `seed` is of times and noise. Gradients are computed also where the caller has none.
    """
    logits = encoder.usual().clone().requires_grad_()
    optimizer, reference = (
        torch.optim.Adam([logits], lr=learning_rate),
        AdapterOff(model.denoiser, partial(branch.disabled, model.denoiser)),
    )
    generator, batches = torch.Generator().manual_seed(seed), list(_batches(model, choices))
    with progress(total=steps, desc="fit user", unit="steps") as bar:
        for _ in range(steps):
            optimizer.zero_grad()
            for batch in draws * batches:
                query = likelihood.prepare(model.denoiser, batch, generator)
                weights = {"user_weights": logits.softmax(dim=0).expand(len(batch.x0), -1)}
                weighted = type(query)(query.noised, {**query.condition, **weights}, query.dropped, query.frames)
                compared = reference.score(likelihood, query) if compares else None
                loss = objective(likelihood.scores(likelihood.score(model.denoiser, weighted), compared, batch)).sum()
                (loss / (draws * len(choices))).backward()
            optimizer.step()
            bar.update()
    return logits.detach().softmax(dim=0)


@torch.no_grad()
def _batches(model: Backbone, choices: Sequence[Choice]) -> Iterator[Batch]:
    """Yield the pairs as batches, as many at once as a network at their size takes."""
    shape = model.latent_shape(model.resolution, model.resolution)
    size = max(1, 2**12 // (shape[1] * shape[2]))
    device = next(model.denoiser.parameters()).device
    empty = model.encode_prompt([""])
    for start in range(0, len(choices), size):
        part = choices[start : start + size]
        pixels = torch.stack([center_crop(image, model.resolution) for c in part for image in (c.preferred, c.dispreferred)])
        latents = model.encode_image(pixels, torch.zeros(len(pixels), *shape))
        condition = model.encode_prompt([choice.prompt for choice in part])
        yield Batch(latents.unflatten(0, (len(part), 2)), condition, empty, torch.ones(len(part))).to(device)
