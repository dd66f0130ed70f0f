"""Stable Diffusion 1.x and 2.x (epsilon, v-prediction, zero-terminal-SNR checkpoints), and the embedded tiny-sd."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from diffusers import StableDiffusionPipeline
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
    folder = resolve(name)
    check_folder(folder)
    try:
        pipe = StableDiffusionPipeline.from_pretrained(
            folder,
            revision=revision,
            variant=variant,
            dtype=dtype,
            use_safetensors=True,
            safety_checker=None,
            requires_safety_checker=False,
        )
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{name}: does not load as a Stable Diffusion ({error})") from error
    pipe.set_progress_bar_config(disable=True)
    return pipe


class StableDiffusion:
    """A loaded Stable Diffusion; VAE and text encoder are frozen, the UNet is the denoiser."""

    lora_targets: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0")

    def __init__(self, pipe: StableDiffusionPipeline, name: str) -> None:
        self.name = name
        self._pipe = pipe
        self.denoiser: nn.Module = pipe.unet
        self.path: Path = VPPath.from_config(pipe.scheduler.config)
        self._factor = 2 ** (len(pipe.vae.config.block_out_channels) - 1)
        self.resolution = int(pipe.unet.config.sample_size) * self._factor
        for part in (pipe.vae, pipe.text_encoder, pipe.unet):
            part.requires_grad_(False).eval()

    @classmethod
    def load(
        cls,
        name: str,
        *,
        revision: str | None = None,
        variant: str | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> StableDiffusion:
        """Return the model of a folder or hub id."""
        return cls(load_pipeline(name, revision=revision, variant=variant, dtype=dtype).to(device), name)

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
        """Return {"prompt_embeds": (N, L, D)}: last hidden states, or the layer that the pipeline's clip_skip default means."""
        tokenizer, encoder = self._pipe.tokenizer, self._pipe.text_encoder
        tokens = tokenizer(list(prompts), padding="max_length", max_length=tokenizer.model_max_length, truncation=True, return_tensors="pt")
        mask = tokens.attention_mask.to(encoder.device) if getattr(encoder.config, "use_attention_mask", False) else None
        return {"prompt_embeds": encoder(tokens.input_ids.to(encoder.device), attention_mask=mask)[0]}

    def predict(self, model: nn.Module, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """Return the UNet's output like x (N, C, H, W)."""
        dtype = self.denoiser.dtype
        assert isinstance(dtype, torch.dtype)
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
