"""Images as tensors. All candidates of a record share one size, crop and flip, so that the candidates never differ by these."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from diffalign.core.errors import RecordError
from diffalign.data.pictures import MOST_PIXELS, Size, decode_image, image_size
from diffalign.data.records import Record, check_shape, conditioning_place


@dataclass(frozen=True, slots=True)
class Framing:
    """How images are resized, cropped and flipped: to a square of `resolution` pixels, or to one of the buckets' sizes if there are any."""

    resolution: int
    random_crop: bool = False
    random_flip: bool = False
    buckets: tuple[Size, ...] = ()

    @property
    def square(self) -> Size:
        """Return the size of every image where there are no buckets."""
        return self.resolution, self.resolution


def record_generator(record_id: str, variant: int) -> torch.Generator:
    """Return the generator for everything random about a record's images: the same in a cached and in a live run."""
    digest = hashlib.sha256(f"{record_id}\0{variant}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def candidate_pixels(record: Record, framing: Framing, generator: torch.Generator, size: Size | None = None) -> tuple[Tensor, Tensor]:
    """Return pixels (K, 3, H, W) in [-1, 1] and frames (K, 6), float32, of a record's images at `size` (the framing's square if None).

    Each image is resized (bilinear, antialiased) to cover the size; all get the same relative crop and the same flip. A frame is the
    size condition of SDXL (2307.01952), in pixels: height and width of the original image, top and left of the crop in the resized
    image, height and width of the result. Raises RecordError that names the record if an image does not decode.
    """
    place, flip = _placement(framing, generator)
    size, framed = size or framing.square, []
    for number, candidate in enumerate(record.candidates):
        data, where = candidate.image or b"", f"{record.source}, candidate {number}"
        framed.append(_framed(decode_image(data, where, least=size), image_size(data, where), size, place, flip))
    pixels, frames = zip(*framed, strict=True)
    return torch.stack(pixels), torch.tensor(frames, dtype=torch.float32)


def conditioning_pixels(record: Record, framing: Framing, generator: torch.Generator, size: Size | None = None) -> Tensor:
    """Return the conditioning images (K, 3, H, W) of a record's candidates, uint8, cropped and flipped as `candidate_pixels` does.

    `generator` is to be seeded as for the pictures. Raises RecordError that names the record where a conditioning image is missing, does
    not decode, or has another aspect ratio than its picture.
    """
    place, flip = _placement(framing, generator)
    size, made = size or framing.square, []
    for number, image in enumerate(record.conditioning_images):
        where = conditioning_place(record, number)
        if image is None:
            raise RecordError(f"{where}: there is none; expected one for every picture, in the column `conditioning_image`")
        check_shape(record, number)
        made.append(_framed(decode_image(image, where, least=size), image_size(image, where), size, place, flip)[0])
    return ((torch.stack(made) + 1.0) * 127.5).round().to(torch.uint8)


def input_pictures(record: Record, framing: Framing, generator: torch.Generator, size: Size, sizes: Sequence[Size]) -> list[Tensor]:
    """Return the input picture of a record of an edit model, its conditioning image, at each of `sizes`: (3, h, w), uint8.

    What `candidate_pixels` cuts off at `size` is cut off here, and both are mirrored alike. The whole of what is left is resized as the
    stock pipelines do (Lanczos), to whatever aspect ratio. `generator` is to be seeded as for the pictures. Raises RecordError that names
    the record where there is none, or one that does not decode or has another aspect ratio than the pictures.
    """
    place, flip = _placement(framing, generator)
    if record.conditioning_image is None:
        raise RecordError(f"{record.source}: no input picture; an edit model needs one, in the column `conditioning_image`")
    image = decode_image(record.conditioning_image, f"{record.source}, input picture")
    for number in range(len(record.candidates)):
        check_shape(record, number)
    scale = max(size[1] / image.width, size[0] / image.height)
    wide, high = min(size[1] / scale, image.width), min(size[0] / scale, image.height)
    left, top = (image.width - wide) * place[0], (image.height - high) * place[1]
    made = [image.resize((own[1], own[0]), Image.Resampling.LANCZOS, (left, top, left + wide, top + high)) for own in sizes]
    made = [one.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for one in made] if flip else made
    return [torch.from_numpy(np.array(one)).permute(2, 0, 1) for one in made]


def _placement(framing: Framing, generator: torch.Generator) -> tuple[tuple[float, float], bool]:
    """Return the place of the crop, as shares of what is left over across and down, and whether the images are mirrored."""
    across, down, coin = torch.rand(3, generator=generator).tolist()
    return (across, down) if framing.random_crop else (0.5, 0.5), framing.random_flip and coin < 0.5


def center_crop(image: Image.Image, resolution: int) -> Tensor:
    """Return pixels (3, R, R) in [-1, 1], float32, of an RGB image, resized as a record's images are and cropped to its centre."""
    return centred(image, resolution)[0]


def centred(image: Image.Image, resolution: int) -> tuple[Tensor, tuple[int, ...]]:
    """Return the pixels of `center_crop` with their frame (see `candidate_pixels`)."""
    return _framed(image, (image.height, image.width), (resolution, resolution), (0.5, 0.5), flip=False)


def _framed(image: Image.Image, original: Size, size: Size, place: tuple[float, float], flip: bool) -> tuple[Tensor, tuple[int, ...]]:
    """Return the pixels and the frame of `image`, which may have been decoded at a fraction of its `original` size."""
    height, width = size
    scale = max(width / original[1], height / original[0])
    wide, high = max(width, round(original[1] * scale)), max(height, round(original[0] * scale))
    left, top = round((wide - width) * place[0]), round((high - height) * place[1])
    if wide * high > MOST_PIXELS:  # a strip, of which the crop leaves next to nothing
        across, down = image.width / wide, image.height / high
        box = (left * across, top * down, (left + width) * across, (top + height) * down)
        image = image.resize((width, height), Image.Resampling.BILINEAR, box)
    else:
        image = image if image.size == (wide, high) else image.resize((wide, high), Image.Resampling.BILINEAR)
        image = image.crop((left, top, left + width, top + height))
    if flip:
        image, left = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), wide - width - left  # of the crop in the mirrored image
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 127.5 - 1.0, (*original, top, left, height, width)
