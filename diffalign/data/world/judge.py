"""Reads the attributes of an image of the embedded world back from its pixels, by measurement alone, without a network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image
from scipy import ndimage

from diffalign.data.colours import flattened
from diffalign.data.world.captions import parse
from diffalign.data.world.scenes import BACKGROUNDS, COLORS, POSITIONS, SHAPES, SIZE, SIZES, draw

GRID = 20  # side of the normalised matte that is compared with the templates
LEAST_CONTRAST = 30.0  # RGB distance (of 441 at most) between shape and background below which there is no shape
LEAST_OVERLAP = 0.62  # intersection over union below which an outline is no shape of the world
SIZE_BORDER = (SIZES["small"][1] + SIZES["large"][0]) / 2


@dataclass(frozen=True, slots=True)
class Reading:
    """What one image shows. If it shows no shape, the numbers of the shape are NaN."""

    attributes: dict[str, str]  # {attribute: value}, without the attributes that cannot be recognised
    fill: np.ndarray  # (3,) RGB in 0..255
    ground: np.ndarray  # (3,) RGB in 0..255
    center: tuple[float, float]  # pixels from the middle of a 64x64 image
    radius: float  # largest half-extent, pixels of a 64x64 image
    overlap: float  # intersection over union with the best template


def _nearest(rgb: np.ndarray, palette: dict[str, tuple[int, int, int]]) -> str:
    return min(palette, key=lambda name: float(((rgb - np.array(palette[name])) ** 2).sum()))


def _normalised(matte: np.ndarray, center: np.ndarray, radius: float) -> np.ndarray:
    left, top = (float(v) for v in center - radius + SIZE // 2)
    image = Image.fromarray(np.pad(matte, SIZE // 2).astype(np.float32))
    box = (left, top, left + 2 * radius, top + 2 * radius)
    return np.asarray(image.resize((GRID, GRID), Image.Resampling.BILINEAR, box=box)).ravel()


def _matte(pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Return the RGB of fill and ground and the share (H, W) of fill in every pixel, or None if nothing stands out from the ground."""
    border = np.concatenate(
        [pixels[:2].reshape(-1, 3), pixels[-2:].reshape(-1, 3), pixels[:, :2].reshape(-1, 3), pixels[:, -2:].reshape(-1, 3)]
    )
    ground = np.median(border, axis=0)
    distance = np.sqrt(((pixels - ground) ** 2).sum(axis=-1))
    top = np.percentile(distance, 98.5)
    if top < LEAST_CONTRAST:
        return None
    fill = np.median(pixels[distance > 0.75 * top], axis=0)
    axis = fill - ground
    if axis @ axis < LEAST_CONTRAST**2:  # the pixels that stand out have no common colour, as in a gradient
        return None
    matte = np.clip(((pixels - ground) @ axis) / (axis @ axis), 0.0, 1.0)
    return (fill, ground, matte) if matte.max() > 0.5 else None


def _box(matte: np.ndarray) -> tuple[np.ndarray, float]:
    """Return centre (x, y), from the top left corner, and largest half-extent of the biggest connected part, both in pixels."""
    labels, count = ndimage.label(matte > 0.5)  # pyright: ignore[reportGeneralTypeIssues]  # scipy has no types
    sizes = ndimage.sum_labels(np.ones_like(labels), labels, range(1, count + 1))
    part = labels == 1 + int(np.argmax(sizes))
    rows, columns = np.flatnonzero(part.any(axis=1)), np.flatnonzero(part.any(axis=0))
    low = np.array([columns[0], rows[0]], dtype=float)
    high = np.array([columns[-1] + 1, rows[-1] + 1], dtype=float)
    return (low + high) / 2, float((high - low).max() / 2)


@cache
def _templates() -> tuple[np.ndarray, np.ndarray]:
    """Return (T, GRID*GRID) mattes of every shape at both sizes, three angles and three blurs, and their shape index (T,)."""
    rows, owners = [], []
    for index, shape in enumerate(SHAPES):
        for radius in (9.0, 16.0):
            for angle in (-0.06, 0.0, 0.06):
                drawn = np.asarray(draw(shape, (255,), (0,), (SIZE / 2, SIZE / 2), radius, angle, mode="L")) / 255.0
                for blur in (0.0, 0.8, 1.4):
                    matte = ndimage.gaussian_filter(drawn, blur)
                    rows.append(_normalised(matte, *_box(matte)))
                    owners.append(index)
    return np.stack(rows), np.array(owners)


def read(image: Image.Image) -> Reading:
    """Return what `image` shows; an image of any size is read at 64x64."""
    rgb = flattened(image)
    if rgb.size != (SIZE, SIZE):
        rgb = rgb.resize((SIZE, SIZE), Image.Resampling.BOX)
    pixels = np.asarray(rgb, dtype=np.float64)
    parts = _matte(pixels)
    if parts is None:
        ground, nan = np.median(pixels.reshape(-1, 3), axis=0), float("nan")
        return Reading({"background": _nearest(ground, BACKGROUNDS)}, np.full(3, nan), ground, (nan, nan), nan, 0.0)
    fill, ground, matte = parts
    corner, radius = _box(matte)
    templates, owners = _templates()
    crop = _normalised(matte, corner, radius)
    overlaps = np.minimum(templates, crop).sum(axis=1) / np.maximum(templates, crop).sum(axis=1)
    best = int(np.argmax(overlaps))
    offset = corner - SIZE / 2
    place = min(POSITIONS, key=lambda name: float(((offset - np.array(POSITIONS[name])) ** 2).sum()))
    attributes = {
        "size": "large" if radius > SIZE_BORDER else "small",
        "color": _nearest(fill, COLORS),
        "position": place,
        "background": _nearest(ground, BACKGROUNDS),
    }
    if overlaps[best] >= LEAST_OVERLAP:
        attributes["shape"] = SHAPES[owners[best]]
    return Reading(attributes, fill, ground, (float(offset[0]), float(offset[1])), radius, float(overlaps[best]))


def matches(prompt: str, reading: Reading) -> dict[str, bool]:
    """Return for each attribute named in `prompt` whether the image shows it, each independently of the others."""
    return {name: reading.attributes.get(name) == value for name, value in parse(prompt).items()}


def adherence(prompt: str, reading: Reading) -> float:
    """Return the share in [0, 1] of the attributes named in `prompt` that the image shows; NaN if it names none."""
    shown = matches(prompt, reading).values()
    return sum(shown) / len(shown) if shown else float("nan")


def mean_adherence(prompts: Sequence[str], images: Sequence[Image.Image]) -> float:
    """Return the mean adherence over pairs of prompt and image, without the prompts that name nothing."""
    return float(np.nanmean([adherence(p, read(i)) for p, i in zip(prompts, images, strict=True)]))
