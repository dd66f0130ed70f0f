"""Pixels of any of Pillow's modes as eight-bit RGB in sRGB, on white: what is trained on, judged and shown."""

from __future__ import annotations

import functools
import io

import numpy as np
from PIL import Image, ImageCms

from diffalign.core.errors import RecordError

DEEP = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")  # modes of more than eight bits, which Pillow's own conversion clips
RANGES = {"I": (255, 65535), "F": (1, 255, 65535)}  # largest values that such pixels usually have
SIXTEEN_BIT = ("PNG", "PPM")  # formats whose deep pixels always reach to 65535
SAME_COLOUR = 2  # levels that a profile may move a colour by and still be sRGB, as differently rounded sRGB profiles do
USUAL_GAMMA, LEAST_GAMMA, MOST_GAMMA = 1 / 2.2, 0.2, 1.0  # of a PNG's gAMA chunk; beyond these it is a slip and not a gamma


def flattened(image: Image.Image) -> Image.Image:
    """Return `image` as RGB: colour profile applied, transparency white, deep pixels scaled to eight bits.

    An RGB image that has none of these is returned as it is; others are copied, without the file's metadata. Raises RecordError for
    deep pixels whose range cannot be told, and for modes that Pillow does not convert.

    >>> flattened(Image.new("RGBA", (1, 1), (255, 0, 0, 0))).getpixel((0, 0))
    (255, 255, 255)
    """
    if image.mode == "RGB" and not image.info.keys() & {"icc_profile", "transparency", "gamma"}:
        return image
    image = _eight_bits(image)
    try:
        image = _in_srgb(_unpacked(image))
        if image.mode == "RGBA":
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        image = image.convert("RGB")
    except ValueError as error:
        raise RecordError(f"pixels of mode {image.mode}, which cannot be converted to RGB") from error
    image.info.clear()  # a profile that has been applied must not be saved with the pixels again
    return image


def _eight_bits(image: Image.Image) -> Image.Image:
    """Return an image of deep pixels as L, or as LA where one value is transparent; others as they are."""
    if image.mode not in DEEP:
        return image
    values = np.asarray(image)
    low, high = float(values.min()), float(values.max())
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in SIXTEEN_BIT):
        ranges: tuple[int, ...] = (65535,)
    else:
        ranges = RANGES[image.mode]
    top = next((top for top in ranges if high <= top), None)
    # Values up to 1.3 are no picture of 0 to 255, and more than one of 0 to 1.
    if top is None or not low >= 0 or (image.mode == "F" and 1 < high < 16):
        expected = ", ".join(f"0 to {top}" for top in ranges)
        raise RecordError(f"pixels of mode {image.mode} from {low:g} to {high:g}; expected {expected}")
    grey = Image.fromarray(np.rint(values * (255 / top)).astype(np.uint8))
    grey.info = dict(image.info)
    transparent = grey.info.pop("transparency", None)
    if isinstance(transparent, int):
        grey.putalpha(Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8)))
    return grey


def _unpacked(image: Image.Image) -> Image.Image:
    """Return `image` in a mode that a colour profile can be applied to: L, RGB, RGBA, CMYK or LAB."""
    if "transparency" in image.info or image.mode in ("LA", "La", "PA", "RGBa"):
        straight = {"La": "LA", "RGBa": "RGBA"}.get(image.mode, image.mode)
        return image.convert(straight).convert("RGBA")
    return image if image.mode in ("L", "RGB", "RGBA", "CMYK", "LAB") else image.convert("RGB")


def _in_srgb(image: Image.Image) -> Image.Image:
    """Return `image` with its colour profile, or else the gamma of its PNG file, applied; a broken profile is ignored."""
    if image.mode == "LAB":
        return ImageCms.applyTransform(image, _lab()) or image
    if profile := image.info.get("icc_profile"):
        transform = _transform(bytes(profile), image.mode)
        return image if transform is None else ImageCms.applyTransform(image, transform) or image
    gamma = image.info.get("gamma")
    if not isinstance(gamma, float) or "srgb" in image.info or not LEAST_GAMMA <= gamma <= MOST_GAMMA or image.mode == "CMYK":
        return image
    if abs(gamma - USUAL_GAMMA) < 0.05:
        return image
    curve = [round(255 * (level / 255) ** (USUAL_GAMMA / gamma)) for level in range(256)]
    return image.point((curve * 3 + list(range(256)))[: 256 * len(image.getbands())])


@functools.lru_cache(maxsize=16)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """Return the transform to sRGB, or None for a profile that is broken, of another kind of pixels, or sRGB itself."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGBA" if mode == "RGBA" else "RGB")
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None
    if mode not in ("RGB", "RGBA"):
        return transform
    grid = np.stack(np.meshgrid(*[np.arange(0, 256, 51, dtype=np.uint8)] * 3), axis=-1).reshape(36, 6, 3)
    probe = Image.fromarray(grid).convert(mode)
    moved = np.asarray(ImageCms.applyTransform(probe, transform)).astype(int) - np.asarray(probe)
    return None if np.abs(moved).max() <= SAME_COLOUR else transform


@functools.cache
def _lab() -> ImageCms.ImageCmsTransform:
    return ImageCms.buildTransform(ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB")
