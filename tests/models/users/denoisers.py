"""Random denoisers of every family, one call of each, and a user branch with something in it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from diffalign.models.users import branch
from tests.micro_models import MAKERS, stir, stock
from tests.paths import ASSETS

WIDTH, TOKENS, COUNT = 24, 5, 2
KINDS = ("sd", "sdxl", "sd3", "flux", "pixart")


def micro(kind: str) -> Any:
    """Return the denoiser of a micro pipeline, or of an embedded model."""
    if kind.startswith("tiny"):
        return denoiser_of(stock(ASSETS / kind))
    torch.manual_seed(0)
    denoiser = denoiser_of(MAKERS[kind]())
    stir(denoiser)
    return denoiser.requires_grad_(False).eval()


def denoiser_of(pipe: Any) -> Any:
    """Return what a pipeline denoises with."""
    return pipe.components.get("unet") or pipe.transformer


def noise(*shape: int, seed: int = 1) -> Tensor:
    """Return standard normal numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def users(seed: int = 7) -> Tensor:
    """Return tokens (N, U, D) of some users."""
    return noise(COUNT, TOKENS, WIDTH, seed=seed)


def fill(denoiser: Any, seed: int = 3) -> None:
    """Put random numbers on top of everything that a branch trains."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in denoiser.parameters():
        if parameter.requires_grad:
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)


def answer(denoiser: Any, tokens: Tensor | None = None) -> Tensor:
    """Return what a denoiser answers to a fixed question, as the family's backbone asks; with a branch, for the users `tokens`."""
    config, kind = denoiser.config, type(denoiser).__name__
    asked: dict[str, Any] = {"timestep": torch.tensor([300.0, 700.0]), "return_dict": False}
    extra = {} if tokens is None else branch.forward_arguments(denoiser, tokens)
    if kind.startswith("Flux"):
        sides = {"hidden_states": noise(COUNT, 16, config.in_channels), "pooled_projections": noise(COUNT, config.pooled_projection_dim)}
        asked |= {"timestep": torch.tensor([0.3, 0.7]), "guidance": torch.ones(COUNT)}
        asked |= {"img_ids": torch.arange(48.0).reshape(16, 3), "txt_ids": torch.zeros(6, 3)}
        return _called(denoiser, asked | sides | extra, config.joint_attention_dim)
    sample = noise(COUNT, config.in_channels, config.sample_size, config.sample_size)
    if kind.startswith("SD3"):
        asked |= {"hidden_states": sample, "pooled_projections": noise(COUNT, config.pooled_projection_dim)}
        return _called(denoiser, asked | extra, config.joint_attention_dim)
    if kind.startswith("PixArt"):
        embeds, mask = noise(COUNT, 6, config.caption_channels), torch.ones(COUNT, 6)
        if tokens is not None:
            embeds, mask = branch.appended(denoiser, embeds, mask, tokens)
        added = {"resolution": None, "aspect_ratio": None}
        asked |= {"hidden_states": sample, "encoder_hidden_states": embeds, "encoder_attention_mask": mask, "added_cond_kwargs": added}
        return denoiser(**asked | extra)[0]
    added = extra.get("added_cond_kwargs", {})
    if config.addition_embed_type == "text_time":
        added = added | {"text_embeds": noise(COUNT, 16), "time_ids": torch.tensor([[32.0, 32, 0, 0, 32, 32]] * COUNT)}
    return _called(denoiser, asked | {"sample": sample, "added_cond_kwargs": added}, config.cross_attention_dim)


def _called(denoiser: Any, asked: dict[str, Any], width: int) -> Tensor:
    return denoiser(encoder_hidden_states=noise(COUNT, 6, width, seed=2), **asked)[0]
