"""Pixels of every mode, depth and colour space become the RGB that a person sees, on white."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, ImageCms

from diffalign.core.errors import RecordError
from diffalign.data.colours import flattened
from diffalign.data.pictures import decode_image, encode_image
from tests.data.test_pictures import encoded, noise


def single(image: Image.Image) -> tuple[int, ...]:
    """Return the colour of the first pixel of the flattened image."""
    return flattened(image).getpixel((0, 0))


def deep(values, dtype) -> Image.Image:
    return Image.fromarray(np.array([values], dtype=dtype))


def levels(image: Image.Image) -> list[int]:
    return [flattened(image).getpixel((column, 0))[0] for column in range(image.width)]


def test_every_mode_of_pillow_becomes_rgb():
    red, wrong = Image.new("RGB", (4, 3), (255, 0, 0)), {}
    expected = {"1": (76, 76, 76), "L": (76, 76, 76), "LA": (76, 76, 76), "La": (76, 76, 76)}  # luma of red: 0.299 x 255
    for mode in ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV", "LAB"):
        if mode == "LAB":
            image = ImageCms.profileToProfile(red, ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB")
        elif mode in ("La", "RGBa"):
            image = red.convert({"La": "LA", "RGBa": "RGBA"}[mode]).convert(mode)
        else:
            image = red.convert({"PA": "P", "LA": "L"}.get(mode, "RGB")).convert(mode)
        found = flattened(image)
        off = np.abs(np.asarray(found, dtype=float).mean(axis=(0, 1)) - expected.get(mode, (255, 0, 0))).max()
        if found.mode != "RGB" or off > {"1": 90, "LAB": 6}.get(mode, 2):  # one bit is dithered
            wrong[mode] = found.getpixel((0, 0))
    assert wrong == {}


def test_transparency_is_white_in_every_mode_that_has_it():
    palette = Image.new("P", (2, 1))
    palette.putpalette([255, 0, 0, 0, 0, 255])
    palette.putpixel((1, 0), 1)
    partial = decode_image(encoded(palette, transparency=bytes([0, 128])), "x")
    # 128/255 of blue over white leaves 127 of red and green
    assert [partial.getpixel((column, 0)) for column in (0, 1)] == [(255, 255, 255), (127, 127, 255)]
    assert single(Image.new("LA", (1, 1), (0, 0))) == (255, 255, 255)
    assert single(Image.new("RGBA", (1, 1), (0, 0, 0, 128))) == (127, 127, 127)
    keyed = decode_image(encoded(Image.new("RGB", (2, 2), (1, 2, 3)), transparency=(1, 2, 3)), "x")
    assert keyed.getpixel((0, 0)) == (255, 255, 255)
    assert decode_image(encoded(Image.new("L", (2, 2), 7), transparency=7), "x").getpixel((0, 0)) == (255, 255, 255)


def test_an_rgb_image_without_metadata_is_returned_as_it_is():
    image = noise()
    assert flattened(image) is image


def test_deep_pixels_are_scaled_by_their_range():
    assert levels(deep([0, 257 * 100, 65535], np.uint16)) == [0, 100, 255]
    assert levels(deep([0, 257 * 100, 65535], np.int32)) == [0, 100, 255]
    assert levels(deep([0, 100, 255], np.int32)) == [0, 100, 255]
    assert levels(deep([0.0, 100 / 255, 1.0], np.float32)) == [0, 100, 255]
    assert levels(deep([0.0, 100.0, 255.0], np.float32)) == [0, 100, 255]
    assert levels(deep([0.0, 25700.0, 65535.0], np.float32)) == [0, 100, 255]
    for values in ([0.0, 0.5, 1.0], [0.0, 255.0, 90.0]):
        file = encoded(deep(values, np.float32), "TIFF")
        assert np.asarray(decode_image(file, "x"))[0, :, 0].tolist() == [round(255 * value / max(values)) for value in values]


def test_float_maps_are_scaled_by_their_range():
    assert levels(Image.open(io.BytesIO(b"Pf\n2 1\n-1.0\n" + np.array([100 / 255, 1], dtype="<f4").tobytes()))) == [100, 255]


def test_a_dark_sixteen_bit_file_stays_dark():
    for kind in ("PNG", "PPM", "TIFF"):
        dark = Image.fromarray(np.full((4, 4), 200, dtype=np.uint16))
        assert (kind, decode_image(encoded(dark, kind), "x").getpixel((0, 0))) == (kind, (1, 1, 1))


def test_deep_pixels_of_no_usual_range_are_refused_by_name():
    for values, dtype in (([-1, 5], np.int32), ([0, 70000], np.int32), ([0.0, 2.5], np.float32), ([0.0, float("nan")], np.float32)):
        with pytest.raises(RecordError, match=r"row 3: the image does not decode: pixels of mode [IF] from"):
            decode_image(encoded(deep(values, dtype), "TIFF"), "row 3")


def wide_gamut() -> bytes:
    """Return a profile of wide primaries: sRGB's own, with the red and green colorants exchanged."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    red, green = profile.index(b"rXYZ"), profile.index(b"gXYZ")
    profile[red : red + 4], profile[green : green + 4] = profile[green : green + 4], profile[red : red + 4]
    return bytes(profile)


def test_a_colour_profile_is_applied_and_not_kept():
    for kind in ("PNG", "JPEG", "WEBP", "TIFF"):
        image = decode_image(encoded(Image.new("RGB", (16, 16), (250, 10, 10)), kind, icc_profile=wide_gamut()), "x")
        # what that profile calls red is sRGB's green
        assert (kind, np.abs(np.array(image.getpixel((4, 4))) - (10, 250, 10)).max() <= 6) == (kind, True)
        with Image.open(io.BytesIO(encode_image(image))) as again:
            assert "icc_profile" not in again.info
    half = flattened(Image.open(io.BytesIO(encoded(Image.new("RGBA", (1, 1), (255, 0, 0, 128)), icc_profile=wide_gamut()))))
    assert np.abs(np.array(half.getpixel((0, 0))) - (127, 255, 127)).max() <= 2


def test_srgb_profiles_and_broken_ones_leave_the_pixels_as_they_are():
    pixels = noise()
    for profile in (ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(), wide_gamut()[:99], b"none"):
        assert decode_image(encoded(pixels, icc_profile=profile), "x").tobytes() == pixels.tobytes()
    grey = pixels.convert("L")  # whose pixels an RGB profile cannot be meant for
    assert decode_image(encoded(grey, icc_profile=wide_gamut()), "x").tobytes() == grey.convert("RGB").tobytes()


def with_gamma(data: bytes, gamma: int) -> bytes:
    """Return a PNG file with a gAMA chunk of `gamma` / 100000."""
    import zlib

    body = b"gAMA" + gamma.to_bytes(4, "big")
    return data[:33] + (4).to_bytes(4, "big") + body + zlib.crc32(body).to_bytes(4, "big") + data[33:]


def test_the_gamma_of_a_png_file_is_applied_where_it_is_not_the_usual_one():
    grey = encoded(Image.new("RGB", (2, 2), (64, 64, 64)))
    # linear light: 255 x (64 / 255) ** (1 / 2.2) = 136.1
    assert decode_image(with_gamma(grey, 100_000), "x").getpixel((0, 0)) == (136, 136, 136)
    for usual in (45_455, 0, 99_999_999):
        assert decode_image(with_gamma(grey, usual), "x").getpixel((0, 0)) == (64, 64, 64)
