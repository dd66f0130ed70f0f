"""What draws a turn: the stock pipeline, a rollout with noise whose steps are kept, or a language model with what draws its words."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from PIL import Image
from torch import Tensor
from tqdm.std import tqdm

from diffalign.infer.draw_votes import Painter
from diffalign.infer.sample import draw
from diffalign.infer.shards import seed_of
from diffalign.infer.text.rewriter import Rewriter
from diffalign.methods.config import TrainConfig
from diffalign.methods.online import steps_without_noise
from diffalign.models.backbones.base import Backbone
from diffalign.models.diffusion.random import normal
from diffalign.models.diffusion.rollout import StepLikelihood, rollout
from diffalign.models.diffusion.rollout_plan import Branch, Noisy
from diffalign.models.reference import Start
from diffalign.train.online.pairs import LATENTS, LOG_PROB, NO_TOKEN, PLACES, SAMPLED, TIMES, TOKENS


@dataclass(frozen=True, slots=True)
class Drawings:
    """What was drawn to N prompts."""

    images: list[Image.Image]
    tensors: dict[str, Tensor]  # (N, ...) what is trained on, on the CPU
    texts: list[str] | None = None  # what the images were drawn from, where a language model wrote it

    @classmethod
    def of(cls, parts: Sequence[Drawings]) -> Drawings:
        """Return parts one after another; nothing for a process that has no prompt."""
        if not parts:
            return cls([], {})
        tensors = {name: torch.cat([part.tensors[name] for part in parts]) for name in parts[0].tensors}
        texts = None if parts[0].texts is None else [text for part in parts for text in part.texts or ()]
        return cls([image for part in parts for image in part.images], tensors, texts)


class Drawer(Protocol):
    """Draws pictures with the network as it stands."""

    def draw(self, prompts: Sequence[str], seeds: Sequence[int], update: int, bar: tqdm[Any]) -> Drawings:
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

    def draw(self, prompts: Sequence[str], seeds: Sequence[int], update: int, bar: tqdm[Any]) -> Drawings:  # noqa: ARG002  # the protocol's
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
        return Drawings(images, {LATENTS: torch.cat(kept)})


@dataclass(frozen=True, slots=True)
class RolloutDrawer:
    """A rollout with noise, by the very calls of the network that replay its steps."""

    config: TrainConfig
    model: Backbone
    noisy: Noisy | Branch
    likelihood: StepLikelihood
    finish: Finish | None = None

    def draw(self, prompts: Sequence[str], seeds: Sequence[int], update: int, bar: tqdm[Any]) -> Drawings:
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
        return Drawings(images, {name: torch.cat([part[name] for part in tensors]) for name in tensors[0]})


@dataclass(frozen=True, slots=True)
class WriterDrawer:
    """A language model that is trained, and a painter, which draws what it writes and stays as it is."""

    config: TrainConfig
    writer: Rewriter
    painter: Painter

    def draw(self, prompts: Sequence[str], seeds: Sequence[int], update: int, bar: tqdm[Any]) -> Drawings:
        """Return a text for each prompt and seed, and its picture.

        All texts to a prompt are drawn from the same noise, another one at each update, so that their pictures differ by the words.
        """
        longest = self.config.max_completion_length
        texts = self.writer.sampled(prompts, seeds, max_new_tokens=longest)
        images = draw(
            self.painter.pipe,
            [text.text for text in texts],
            [noise_seed(self.config, prompt, update) for prompt in prompts],
            num_inference_steps=self.config.num_inference_steps,
            guidance_scale=self.config.sample_guidance_scale,
            bar=bar,
            **self.painter.options,
        )
        tokens, log_probs = torch.full((len(texts), longest), NO_TOKEN), torch.zeros(len(texts), longest)
        for row, text in enumerate(texts):
            tokens[row, : len(text.ids)], log_probs[row, : len(text.ids)] = text.ids, text.log_probs
        return Drawings(images, {TOKENS: tokens, SAMPLED: log_probs}, [text.text for text in texts])


def noise_seed(config: TrainConfig, prompt: str, update: int) -> int:
    """Return the seed of the pictures that are drawn of all texts to a prompt, at an update."""
    return seed_of(config.seed, prompt, update)
