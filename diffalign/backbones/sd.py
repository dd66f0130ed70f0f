"""Stable Diffusion 1.x and 2.x (epsilon, v-prediction, zero-terminal-SNR checkpoints), and the embedded tiny-sd."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn

from diffalign.backbones.folders import check_folder, resolve
from diffalign.diffusion.path import Path, VPPath
from diffalign.errors import CheckpointError
from diffalign.types import Condition


def load_pipeline(
    name: str, *, revision: str | None = None, variant: str | None = None, dtype: torch.dtype = torch.float32
) -> StableDiffusionPipeline:
    """Return the stock pipeline of a model folder or hub id: safetensors only, no safety checker, no progress bars.

    Raises CheckpointError that names the model if it does not load.
    """
    options = {"revision": revision, "variant": variant, "dtype": dtype, "safety_checker": None, "requires_safety_checker": False}
    pipe = _load(StableDiffusionPipeline, name, options)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def load_denoiser(name: str, *, revision: str | None = None, variant: str | None = None) -> Any:
    """Return the UNet alone, float32 and frozen. Raises CheckpointError that names the model if it does not load."""
    options = {"subfolder": "unet", "revision": revision, "variant": variant, "dtype": torch.float32}
    return _load(UNet2DConditionModel, name, options).requires_grad_(False).eval()


def _load(kind: Any, name: str, options: dict[str, Any]) -> Any:
    folder = resolve(name)
    check_folder(folder)
    try:
        return kind.from_pretrained(folder, use_safetensors=True, **options)
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{name}: does not load as a Stable Diffusion ({error})") from error


class StableDiffusion:
    """A loaded Stable Diffusion; VAE and text encoder are frozen, the UNet is the denoiser."""

    lora_targets: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0")

    def __init__(self, pipe: StableDiffusionPipeline, name: str, precision: torch.dtype = torch.float32) -> None:
        self.name, self.precision = name, precision
        self._pipe = pipe
        self.denoiser: nn.Module = pipe.unet
        self.path: Path = VPPath.from_config(pipe.scheduler.config)
        self._factor = 2 ** (len(pipe.vae.config.block_out_channels) - 1)
        self.resolution = int(pipe.unet.config.sample_size) * self._factor
        for part in (pipe.vae, pipe.text_encoder, pipe.unet):
            part.requires_grad_(False).eval()

    @property
    def device(self) -> torch.device:
        """Return where the model lies."""
        return self._pipe.vae.device

    def latent_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """Return (C, H, W) of the latent of an image in pixels."""
        return int(self._pipe.vae.config.latent_channels), height // self._factor, width // self._factor

    @torch.no_grad()
    def encode_image(self, pixels: Tensor, noise: Tensor) -> Tensor:
        """Return scaled latents, float32. Raises CheckpointError where they are not finite (a half-precision VAE overflows)."""
        vae = self._pipe.vae
        posterior = vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist
        latents = (posterior.mean.float() + posterior.std.float() * noise.to(vae.device)) * vae.config.scaling_factor
        if not latents.isfinite().all():
            bad = (~latents.flatten(1).isfinite().all(dim=1)).nonzero().flatten().tolist()
            raise CheckpointError(
                f"{self.name}: the VAE gives latents that are not finite for images {bad} of this batch; load it in float32"
            )
        return latents

    @torch.no_grad()
    def encode_prompt(self, prompts: Sequence[str]) -> Condition:
        """Return {"prompt_embeds": (N, L, D)}: last hidden states of the text encoder."""
        tokenizer, encoder = self._pipe.tokenizer, self._pipe.text_encoder
        tokens = tokenizer(list(prompts), padding="max_length", max_length=tokenizer.model_max_length, truncation=True, return_tensors="pt")
        mask = tokens.attention_mask.to(encoder.device) if getattr(encoder.config, "use_attention_mask", False) else None
        return {"prompt_embeds": encoder(tokens.input_ids.to(encoder.device), attention_mask=mask)[0]}

    def predict(self, model: nn.Module, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """Return the UNet's output like x (N, C, H, W), computed under autocast to `precision`, whichever network it is."""
        dtype: Any = self.denoiser.dtype
        with torch.autocast(x.device.type, self.precision, enabled=self.precision != torch.float32):
            return model(x.to(dtype), t, condition["prompt_embeds"].to(dtype), return_dict=False)[0]

    def pipeline(self) -> StableDiffusionPipeline:
        """Return the stock pipeline around the UNet as it is now."""
        return self._pipe

    def fingerprint(self) -> str:
        """Return a hash over the VAE's and the text encoder's weights (their first numbers), names and shapes, and the tokenizer."""
        digest = hashlib.sha256(repr(sorted(self._pipe.tokenizer.get_vocab().items())).encode())
        digest.update(repr((self._pipe.vae.config.scaling_factor, self._pipe.tokenizer.model_max_length)).encode())
        for part in (self._pipe.vae, self._pipe.text_encoder):
            for key, value in part.state_dict().items():
                digest.update(f"{key}{tuple(value.shape)}{value.dtype}".encode())
                digest.update(value.flatten()[:256].cpu().double().numpy().tobytes())
        return digest.hexdigest()
