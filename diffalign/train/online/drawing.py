"""What draws a turn: the stock pipeline with its own sampler, or a rollout with noise whose steps are kept."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor
from tqdm.std import tqdm

from diffalign.infer.sample import draw
from diffalign.methods.config import TrainConfig
from diffalign.methods.online import steps_without_noise
from diffalign.models.backbones.base import Backbone
from diffalign.models.diffusion.random import normal
from diffalign.models.diffusion.rollout import StepLikelihood, rollout
from diffalign.models.diffusion.rollout_plan import Branch, Noisy
from diffalign.models.reference import Start
from diffalign.train.online.pairs import LATENTS, LOG_PROB, PLACES, TIMES

Drawn = tuple[list[Image.Image], dict[str, Tensor]]  # N pictures, and the tensors (N, ...) that are trained on, on the CPU


class Drawer(Protocol):
    """Draws pictures with the network as it stands."""

    def draw(self, prompts: Sequence[str], seeds: Sequence[int], update: int, bar: tqdm[Any]) -> Drawn:
        """Return a picture for each prompt and seed, at an optimiser step."""
        ...


@dataclass(frozen=True, slots=True)
class Finish:
    """The model that training began with takes the solver steps from number `first` on."""

    start: Start
    first: int

    @contextlib.contextmanager
    def steps(self) -> Iterator[Callable[[int], None]]:
        """Give what is to be called as each step of a picture begins, with its number; the network is the drawing one again afterwards."""
        with contextlib.ExitStack() as stack:

            def begins(step: int) -> None:
                if step == 0:
                    stack.close()
                if step == self.first:
                    stack.enter_context(self.start.driving())

            yield begins


@dataclass(frozen=True, slots=True)
class PipelineDrawer:
    """The stock pipeline, as every other picture is drawn."""

    config: TrainConfig
    model: Backbone
    finish: Finish | None = None

    def draw(self, prompts: Sequence[str], seeds: Sequence[int], update: int, bar: tqdm[Any]) -> Drawn:  # noqa: ARG002  # the protocol's
        """Return a picture for each prompt and seed, and the latents that they were decoded from."""
        config, kept = self.config, list[Tensor]()
        with self.finish.steps() if self.finish else contextlib.nullcontext() as begins:
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
                begins=begins,
            )
        return images, {LATENTS: torch.cat(kept)}


@dataclass(frozen=True, slots=True)
class RolloutDrawer:
    """A rollout with noise, by the very calls of the network that replay its steps."""

    config: TrainConfig
    model: Backbone
    noisy: Noisy | Branch
    likelihood: StepLikelihood
    finish: Finish | None = None

    def draw(self, prompts: Sequence[str], seeds: Sequence[int], update: int, bar: tqdm[Any]) -> Drawn:
        """Return a picture for each prompt and seed, its latent and its kept steps; the pictures of a tree lie side by side."""
        model, side = self.model, self.config.resolution or self.model.resolution
        shape, device = model.latent_shape(side, side), next(model.network.parameters()).device
        plan = self.noisy.plan(update, self.config.num_inference_steps, steps_without_noise(self.config))
        few = max(1, min(32, 2**14 // (shape[1] * shape[2])) // plan.leaves) * plan.leaves
        model.pipeline()  # brings the encoders to the device
        images, tensors = list[Image.Image](), list[dict[str, Tensor]]()
        frame = torch.tensor([side, side, 0, 0, side, side], dtype=torch.float32, device=device)
        for start in range(0, len(prompts), few):
            part = slice(start, start + few)
            roots, generators = list(prompts[part])[:: plan.leaves], [torch.Generator().manual_seed(seed) for seed in seeds[part]]
            condition, empty = model.encode_prompt(roots), model.encode_prompt([""])
            frames = frame.expand(len(roots), plan.leaves, -1)
            noise = normal((len(roots), *shape), generators[:: plan.leaves]).to(device)
            predict, path = self.likelihood.predict(model.network, condition, empty, frames), self.likelihood.path
            with self.finish.steps() if self.finish else contextlib.nullcontext() as begins:
                made = rollout(noise, predict, path, generators, plan, w=self.likelihood.w, begins=begins)
            images += model.decode_latents(made.latents)
            names = (LATENTS, *PLACES, *TIMES, *([LOG_PROB] if plan.splits else []))
            tensors.append({name: getattr(made, name).cpu() for name in names})
            bar.update(len(generators))
        return images, {name: torch.cat([part[name] for part in tensors]) for name in tensors[0]}
