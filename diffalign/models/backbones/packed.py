"""What flow transformers on packed 2x2 patches share (Flux, Chroma, Qwen-Image): tokens in place of latents, and no size of their own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import FluxPipeline
from torch import Tensor

from diffalign.models.backbones.pretrained import JOINT, Pretrained
from diffalign.models.diffusion.path import Path


class Packed(Pretrained):
    """A transformer whose tokens (N, H W / 4, 4 C) are 2x2 patches of a latent (N, C, H, W)."""

    component = "transformer"
    lora_targets = JOINT

    def _path(self) -> Path:
        return self._flow_path()

    @classmethod
    def sample_size(cls, pipe: Any) -> int:
        """Return the pipeline's default; the transformer's config has none."""
        return super().sample_size(pipe) if cls.side is not None else int(pipe.default_sample_size)

    @staticmethod
    def packed(x: Tensor) -> Tensor:
        """Return tokens of latents (N, C, H, W)."""
        return FluxPipeline._pack_latents(x, *x.shape)

    @classmethod
    def unpacked(cls, pipe: Any, latents: Tensor, height: int, width: int) -> Tensor:
        """Return latents (N, C, H, W) of tokens of pictures of so many pixels."""
        return FluxPipeline._unpack_latents(latents, height, width, pipe.vae_scale_factor)

    def _tokens_of(self, latents: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
        """Return the tokens of latents behind each other."""
        return torch.cat([self.packed(one.to(dtype)) for one in latents], dim=1)

    def _unpacked_like(self, tokens: Tensor, x: Tensor) -> Tensor:
        """Return the latents like x of its tokens, which come first."""
        tokens = tokens[:, : x.shape[2] * x.shape[3] // 4]
        return FluxPipeline._unpack_latents(tokens, x.shape[2], x.shape[3], 1)
