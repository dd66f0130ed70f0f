"""Images to tensors. All candidates of a record share one size, one crop and one flip: a difference between them is never the crop's."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from diffalign.data.records import Record, decode_image

Size = tuple[int, int]  # height, width


@dataclass(frozen=True, slots=True)
class Framing:
    """How an image becomes a square of `resolution` pixels or, where there are buckets, one of their sizes."""

    resolution: int
    random_crop: bool = False
    random_flip: bool = False
    buckets: tuple[Size, ...] = ()

    @property
    def square(self) -> Size:
        """Return the size of every image where there are no buckets."""
        return self.resolution, self.resolution


def record_generator(record_id: str, variant: int) -> torch.Generator:
    """Return the generator of everything drawn about the images of a record: the same in a cached and in a live run."""
    digest = hashlib.sha256(f"{record_id}\0{variant}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def candidate_pixels(record: Record, framing: Framing, generator: torch.Generator, size: Size | None = None) -> tuple[Tensor, Tensor]:
    """Return pixels (K, 3, H, W) in [-1, 1] and frames (K, 6), float32, of a record's images at `size` (the framing's square if None).

    Each is resized (bilinear, antialiased) to cover the size; then same relative crop, same flip. A frame is what SDXL (2307.01952) is
    told, in pixels: height and width of the file's image, top and left of the crop in the resized one, height and width of the result.
    Raises RecordError that names the record if an image does not decode.
    """
    across, down, coin = torch.rand(3, generator=generator).tolist()
    place = (across, down) if framing.random_crop else (0.5, 0.5)
    flip = framing.random_flip and coin < 0.5
    images = [decode_image(c.image or b"", f"{record.source}, candidate {i}") for i, c in enumerate(record.candidates)]
    pixels, frames = zip(*(_framed(image, size or framing.square, place, flip) for image in images), strict=True)
    return torch.stack(pixels), torch.tensor(frames, dtype=torch.float32)


def centred(image: Image.Image, resolution: int) -> Tensor:
    """Return pixels (3, R, R) in [-1, 1], float32, of the middle of an RGB image, framed as a record's without chance."""
    return _framed(image, (resolution, resolution), (0.5, 0.5), flip=False)[0]


def _framed(image: Image.Image, size: Size, place: tuple[float, float], flip: bool) -> tuple[Tensor, tuple[int, ...]]:
    original, (height, width) = (image.height, image.width), size
    scale = max(width / image.width, height / image.height)
    wide, high = max(width, round(image.width * scale)), max(height, round(image.height * scale))
    if image.size != (wide, high):
        image = image.resize((wide, high), Image.Resampling.BILINEAR)
    left, top = round((wide - width) * place[0]), round((high - height) * place[1])
    image = image.crop((left, top, left + width, top + height))
    if flip:
        image, left = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), wide - width - left  # where it lies in the mirrored image
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 127.5 - 1.0, (*original, top, left, height, width)
