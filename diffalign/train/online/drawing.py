"""What draws a turn: the stock pipeline with its own sampler, or a rollout with noise whose steps are kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor
from tqdm.std import tqdm

from diffalign.infer.sample import draw
from diffalign.methods.config import TrainConfig
from diffalign.models.backbones.base import Backbone
from diffalign.models.diffusion.random import normal
from diffalign.models.diffusion.rollout import Noisy, StepLikelihood, rollout
from diffalign.train.online.pairs import LATENTS, PLACES, TIMES

Drawn = tuple[list[Image.Image], dict[str, Tensor]]  # N pictures, and the tensors (N, ...) that are trained on, on the CPU


class Drawer(Protocol):
    """Draws pictures with the network as it stands."""

    def draw(self, prompts: Sequence[str], seeds: Sequence[int], update: int, bar: tqdm[Any]) -> Drawn:
        """Return a picture for each prompt and seed, at an optimiser step."""
        ...


@dataclass(frozen=True, slots=True)
class PipelineDrawer:
    """The stock pipeline, as every other picture is drawn."""

    config: TrainConfig
    model: Backbone

    def draw(self, prompts: Sequence[str], seeds: Sequence[int], update: int, bar: tqdm[Any]) -> Drawn:  # noqa: ARG002  # the protocol's
        """Return a picture for each prompt and seed, and the latents that they were decoded from."""
        config, kept = self.config, list[Tensor]()
        images = draw(
            self.model.pipeline(),
            prompts,
            seeds,
            num_inference_steps=config.num_inference_steps,
            guidance_scale=config.sample_guidance_scale,
            resolution=config.resolution,
            max_sequence_length=config.max_sequence_length,
            bar=bar,
            keep=lambda latents: kept.append(latents.float().cpu()),
        )
        return images, {LATENTS: torch.cat(kept)}


@dataclass(frozen=True, slots=True)
class RolloutDrawer:
    """A rollout with noise, by the very calls of the network that replay its steps."""

    config: TrainConfig
    model: Backbone
    noisy: Noisy
    likelihood: StepLikelihood

    def draw(self, prompts: Sequence[str], seeds: Sequence[int], update: int, bar: tqdm[Any]) -> Drawn:
        """Return a picture for each prompt and seed, its latent and its kept steps."""
        model, side = self.model, self.config.resolution or self.model.resolution
        shape, device = model.latent_shape(side, side), next(model.network.parameters()).device
        kept = self.noisy.trained(update, self.config.num_inference_steps)
        few = max(1, min(32, 2**14 // (shape[1] * shape[2])))
        model.pipeline()  # brings the encoders to the device
        images, tensors = list[Image.Image](), list[dict[str, Tensor]]()
        for start in range(0, len(prompts), few):
            part = slice(start, start + few)
            condition, empty = model.encode_prompt(prompts[part]), model.encode_prompt([""])
            frames = torch.tensor([side, side, 0, 0, side, side], dtype=torch.float32, device=device).expand(len(prompts[part]), 1, -1)
            generators = [torch.Generator().manual_seed(seed) for seed in seeds[part]]
            made = rollout(
                normal((len(prompts[part]), *shape), generators).to(device),
                self.likelihood.predict(model.network, condition, empty, frames),
                self.likelihood.path,
                generators,
                self.noisy,
                steps=self.config.num_inference_steps,
                kept=kept,
                w=self.likelihood.w,
            )
            images += model.decode_latents(made.latents)
            tensors.append({name: getattr(made, name).cpu() for name in (LATENTS, *PLACES, *TIMES)})
            bar.update(len(prompts[part]))
        return images, {name: torch.cat([part[name] for part in tensors]) for name in tensors[0]}
