"""What every family of image generators offers: its denoiser, its noise schedule, its encoders, and one call of the denoiser."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol

from PIL import Image
from torch import Tensor, nn

from diffalign.core.parts import Trained
from diffalign.core.types import Condition
from diffalign.models.diffusion.path import Path


class Backbone(Trained, Protocol):
    """A loaded image generator. `denoiser` is what gets trained; everything else is frozen."""

    denoiser: nn.Module
    resolution: int  # pixels
    picture: ClassVar[Literal["none", "optional", "needed"]]  # whether it takes an input picture, as edit models do
    path: Path  # the noise schedule, and what the network's output means

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """Return (C, H, W) of the latent of an image in pixels."""
        ...

    def encode_image(self, pixels: Tensor, noise: Tensor) -> Tensor:
        """Return scaled latents (N, C, H, W), float32, of pixels (N, 3, h, w) in [-1, 1]; `noise` draws from the VAE's posterior."""
        ...

    def decode_latents(self, latents: Tensor) -> list[Image.Image]:
        """Return the pictures of scaled latents (N, C, H, W), as the stock pipeline decodes them."""
        ...

    def encode_prompt(self, prompts: Sequence[str]) -> Condition:
        """Return what the denoiser is told about each prompt, first axis N. The empty prompt is the stock pipeline's unconditional one."""
        ...

    def prompt_for_training(self, prompts: Sequence[str]) -> Condition:
        """Return the same with zeros where the denoiser reads nothing."""
        ...

    def cut_prompts(self, prompts: Sequence[str]) -> tuple[int, int]:
        """Return how many of `prompts` do not fit the text encoder that reads the most, and how many tokens that is."""
        ...

    def predict(self, model: nn.Module, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """Return the output of `model` (the denoiser or a copy of it) like x (N, C, H, W), at path times t (N,).

        `condition` is that of the prompts; "frames" (N, 6) in it are the images' original height and width, crop top and left, and
        target height and width, for models that are told them.
        """
        ...

    def reference_size(self, height: int, width: int) -> tuple[int, int]:
        """Return the size in pixels at which an edit model reads the input picture of a picture of this size."""
        ...

    def seen_size(self, height: int, width: int) -> tuple[int, int] | None:
        """Return the size at which its text encoder sees that picture; None where it reads the prompt alone."""
        ...

    def encode_reference(self, pixels: Tensor) -> Tensor:
        """Return latents of input pictures (N, 3, h, w), uint8, which `predict` reads as "reference" in its condition."""
        ...

    def encode_edit(self, prompts: Sequence[str], seen: Tensor | None) -> Condition:
        """Return what `encode_prompt` does where the text encoder sees the input pictures (N, 3, h, w), uint8, as well."""
        ...

    def control(self, name: str | None = None) -> None:
        """Put a trainable ControlNet beside the denoiser; `predict` then also reads "conditioning_image" (N, 3, h, w) in [0, 1]."""
        ...

    def read_layers(self) -> Mapping[str, int]:
        """Return how many layers of each text encoder, by its name in the pipeline, the denoiser reads."""
        ...

    def train_text_encoders(self) -> None:
        """Put the text encoders beside the denoiser, into what is trained; a prompt's condition is then its tokens."""
        ...

    @property
    def adapted(self) -> Mapping[str, nn.Module]:
        """Return the networks that have adapters of a run, by their name in the pipeline."""
        ...

    def pipeline(self, *, whole: bool = True) -> Any:
        """Return the stock diffusers pipeline around the denoiser as it is now; without `whole`, encoders stay where they are."""
        ...

    def vae_fingerprint(self) -> str:
        """Return a hash of the part that encodes images, the same in every precision."""
        ...


@dataclass(frozen=True, slots=True)
class BackboneSettings:
    """What a run may choose about a backbone."""

    resolution: int | None = None  # pixels; the model's own where None
    max_sequence_length: int | None = None  # T5 tokens; the pipeline's default where None
    guidance_scale: float = 1.0  # what a guidance-distilled model is told
    flow: Mapping[str, Any] = field(default_factory=dict)  # constants of FlowPath
