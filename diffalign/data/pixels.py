"""Images to tensors. All candidates of a record share one crop and one flip: a difference between them is never the crop's."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from diffalign.data.records import Record, decode_image


@dataclass(frozen=True, slots=True)
class Framing:
    """How an image becomes a square of `resolution` pixels."""

    resolution: int
    random_crop: bool = False
    random_flip: bool = False


def record_generator(record_id: str, variant: int) -> torch.Generator:
    """Return the generator of everything drawn about the images of a record: the same in a cached and in a live run."""
    digest = hashlib.sha256(f"{record_id}\0{variant}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def candidate_pixels(record: Record, framing: Framing, generator: torch.Generator) -> Tensor:
    """Return (K, 3, H, W) in [-1, 1]: shorter side resized (bilinear, antialiased), same relative crop, same flip.

    Raises RecordError that names the record if an image does not decode.
    """
    across, down, coin = torch.rand(3, generator=generator).tolist()
    place = (across, down) if framing.random_crop else (0.5, 0.5)
    flip = framing.random_flip and coin < 0.5
    images = [decode_image(c.image or b"", f"{record.source}, candidate {i}") for i, c in enumerate(record.candidates)]
    return torch.stack([_square(image, framing.resolution, place, flip) for image in images])


def _square(image: Image.Image, side: int, place: tuple[float, float], flip: bool) -> Tensor:
    scale = side / min(image.size)
    width, height = (max(side, round(v * scale)) for v in image.size)
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = round((width - side) * place[0]), round((height - side) * place[1])
    image = image.crop((left, top, left + side, top + side))
    if flip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 127.5 - 1.0
