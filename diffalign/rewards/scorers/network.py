"""Scorers by networks: what they have in common, and their weights from files that run no code."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from huggingface_hub import hf_hub_download
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from diffalign.core.errors import CheckpointError
from diffalign.rewards.base import check_arguments
from diffalign.rewards.scorers.frame import Frame

BATCH = 32  # images at once


@dataclass(frozen=True, slots=True)
class Network:
    """A scorer that frames images and applies `formula`: pixels (N, 3, S, S) and prompts -> scores (N,)."""

    name: str
    scale: str
    licence: str
    max_tokens: int | None
    revision: str | None
    frame: Frame
    formula: Callable[[Tensor, Sequence[str]], Tensor]
    device: str
    unit: str

    @torch.no_grad()
    def __call__(self, images: Sequence[Image.Image], prompts: Sequence[str]) -> np.ndarray:
        """Return scores (N,). Raises CheckpointError where the network gives none, as damaged weights do."""
        check_arguments(images, prompts)
        rows = [np.empty(0)]
        for start in range(0, len(images), BATCH):
            part = slice(start, start + BATCH)
            scores = self.formula(self.frame.pixels(images[part]).to(self.device), prompts[part]).double().cpu().numpy()
            if not np.isfinite(scores).all():
                raise CheckpointError(f"`{self.name}` gives {scores[~np.isfinite(scores)][0]} as a score; its weights are damaged")
            rows.append(scores)
        return np.concatenate(rows)

    def tensors(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Return scores (N,) with gradients for images (N, 3, H, W) in [0, 1]; about those of `__call__`, whose pixels are 8 bits."""
        return self.formula(self.frame.tensors(images.to(self.device)), prompts)


def frozen(network: nn.Module, device: str) -> None:
    """Move `network` to `device` for use as it is: gradients pass through it, not into it."""
    network.to(device).requires_grad_(False).eval()


def read_weights(name: str, file: str, revision: str | None = None) -> dict[str, Tensor]:
    """Return the tensors of a file, or of `file` in a folder or hub repository: safetensors, or a pickle of tensors alone.

    Raises CheckpointError if it is missing or holds anything else; nothing in it is run.
    """
    path = Path(name)
    try:
        if path.is_dir():
            path /= file
        elif not path.is_file():
            path = Path(hf_hub_download(name, file, revision=revision))
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, ValueError, RuntimeError, SafetensorError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"{name}: no weights can be read from {path} ({str(error).splitlines()[0]})") from error
    content = content.get("state_dict", content) if isinstance(content, dict) else content
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise CheckpointError(f"{path}: expected tensors by name")
    return content


def fill(network: nn.Module, weights: dict[str, Tensor], name: str, *, unused: tuple[str, ...] = ()) -> None:
    """Load `weights` into `network`; keys that start with one of `unused` are left out. Raises CheckpointError where any other differs."""
    try:
        network.load_state_dict({key: value for key, value in weights.items() if not key.startswith(unused)} if unused else weights)
    except RuntimeError as error:
        lines = str(error).splitlines()
        raise CheckpointError(
            f"{name}: not the weights of a {type(network).__name__}: {lines[min(1, len(lines) - 1)].strip()[:300]}"
        ) from error
