"""How an image becomes the square that a model reads: from files as the model's authors made it, or from tensors with gradients."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from diffalign.data.colours import flattened

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True, slots=True)
class Frame:
    """Resizes bicubically, makes a square of `side` pixels and normalises.

    `floor` and `round` take the shortest side to `side` and crop the middle, an odd remainder as transformers rounds it or as
    torchvision does; `pad` takes the longest side there and pads with black, as HPSv2 does.
    """

    side: int
    fit: Literal["floor", "round", "pad"]
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD

    def pixels(self, images: Sequence[Image.Image]) -> Tensor:
        """Return (N, 3, S, S); crops are resized by Pillow to 8 bits, padded ones as tensors, as the authors do."""
        if self.fit == "pad":
            return torch.cat([self.tensors(_tensor(image)[None]) for image in images])
        return self._normalised(torch.stack([_tensor(self._cropped(image)) for image in images]))

    def tensors(self, images: Tensor) -> Tensor:
        """Return (N, 3, S, S) for images (N, 3, H, W) in [0, 1], with gradients. What Pillow rounds to 8 bits is not rounded here."""
        height, width = self._size(*images.shape[-2:])
        if (height, width) != tuple(images.shape[-2:]):
            images = F.interpolate(images, (height, width), mode="bicubic", antialias=True, align_corners=False)
            images = images if self.fit == "pad" else images.clamp(0.0, 1.0)
        if self.fit == "pad":
            down, across = self.side - height, self.side - width
            return self._normalised(F.pad(images, (across // 2, across - across // 2, down // 2, down - down // 2)))
        top, left = self._corner(height), self._corner(width)
        return self._normalised(images[..., top : top + self.side, left : left + self.side])

    def _cropped(self, image: Image.Image) -> Image.Image:
        height, width = self._size(image.height, image.width)
        resized = flattened(image).resize((width, height), Image.Resampling.BICUBIC)
        top, left = self._corner(height), self._corner(width)
        return resized.crop((left, top, left + self.side, top + self.side))

    def _size(self, height: int, width: int) -> tuple[int, int]:
        if self.fit == "pad":
            scale = self.side / max(height, width)
            return max(1, round(height * scale)), max(1, round(width * scale))
        short = min(height, width)
        return int(self.side * height / short), int(self.side * width / short)

    def _corner(self, extent: int) -> int:
        return (extent - self.side) // 2 if self.fit == "floor" else round((extent - self.side) / 2)

    def _normalised(self, images: Tensor) -> Tensor:
        mean, std = (torch.tensor(v, device=images.device, dtype=images.dtype)[:, None, None] for v in (self.mean, self.std))
        return (images - mean) / std


def _tensor(image: Image.Image) -> Tensor:
    """Return (3, H, W) in [0, 1]."""
    return torch.from_numpy(np.asarray(flattened(image)).copy()).permute(2, 0, 1).float() / 255.0
