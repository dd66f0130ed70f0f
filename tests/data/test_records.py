"""Records refuse what cannot be used, and images decode to upright RGB whatever their file."""

from __future__ import annotations

import io
import math
import random
import warnings

import numpy as np
import pytest
from PIL import Image

from diffalign.core.errors import RecordError
from diffalign.data.records import Candidate, Message, Record, check_images, decode_image, encode_image


def text_pair(**fields) -> Record:
    """Return a valid text pair, with `fields` replaced."""
    plain = {"id": "r:0", "prompt": "say hi", "candidates": (Candidate(text="hi"), Candidate(text="no")), "source": "votes.csv row 3"}
    return Record(**{**plain, **fields})


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_a_valid_record_comes_back_from_check_as_it_is():
    record = text_pair(prob=0.25, user="u", messages=(Message("user", "say hi"),))
    assert record.check() is record
    assert record.kind == "text"
    assert Record("i", "p", (Candidate(image=b"x"),)).kind == "image"
    assert Record("i", "p", ()).check().kind == "prompt"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"candidates": (), "prob": 1.0}, "no candidates"),
        ({"candidates": (Candidate(text="a"), Candidate(image=b"b"))}, "every candidate must be an image, or every one a text"),
        ({"candidates": (Candidate(text="a", image=b"b"),)}, "every candidate must be an image"),
        ({"candidates": (Candidate(),)}, "every candidate must be an image"),
        ({"prob": 1.5}, r"the preference is 1.5; expected a number in \[0, 1\]"),
        ({"prob": -1e-9}, "the preference is -1e-09"),
        ({"prob": math.nan}, "the preference is nan"),
        ({"candidates": (Candidate(text="a", scores={"clip": math.inf}),)}, "score `clip` is inf; expected a finite number"),
        ({"candidates": (Candidate(text="a"), Candidate(text="b", rank=math.nan))}, "the rank of candidate 1 is nan"),
        ({"prompt": "half \ud83d"}, "the prompt holds half of a surrogate pair"),
        ({"candidates": (Candidate(text="a"), Candidate(text="\udc00"))}, "candidate 1 holds half of a surrogate pair"),
        ({"messages": (Message("user", "\ud800"),)}, "a message holds half of a surrogate pair"),
    ],
)
def test_an_unusable_record_is_refused_with_its_source_and_reason(fields, message):
    with pytest.raises(RecordError, match=message) as caught:
        text_pair(**fields).check()
    assert str(caught.value).startswith("votes.csv row 3: ")


def test_an_image_survives_encoding_exactly():
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    assert np.array_equal(np.asarray(decode_image(encode_image(Image.fromarray(pixels)), "x")), pixels)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_every_mode_of_pillow_decodes_to_rgb(mode):
    image = decode_image(encoded(Image.new("RGB", (4, 3), (255, 255, 255)).convert(mode), "JPEG" if mode == "CMYK" else "PNG"), "x")
    assert (image.mode, image.size, image.getpixel((0, 0))) == ("RGB", (4, 3), (255, 255, 255))


def test_transparency_becomes_white():
    half = decode_image(encoded(Image.new("RGBA", (1, 1), (255, 0, 0, 128))), "x")
    # 255 * 128/255 + 255 * 127/255 = 255 in red; 0 * 128/255 + 255 * 127/255 = 127 in green and blue
    assert half.getpixel((0, 0)) == (255, 127, 127)
    palette = Image.new("P", (2, 2), 0)
    palette.putpalette([255, 0, 0, *[0] * 765])
    assert decode_image(encoded(palette, transparency=0), "x").getpixel((0, 0)) == (255, 255, 255)


def test_sixteen_bits_a_channel_are_scaled_not_clipped():
    # 257 * 100 is the 16-bit value of the 8-bit gray 100
    deep = Image.fromarray(np.full((2, 2), 257 * 100, dtype=np.uint16))
    assert decode_image(encoded(deep), "x").getpixel((0, 0)) == (100, 100, 100)


def test_a_photo_taken_sideways_stands_upright():
    image = Image.new("RGB", (8, 4), "white")
    image.paste("black", (0, 0, 4, 4))  # the left half is black
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turn a quarter clockwise to see it
    upright = decode_image(encoded(image, exif=exif), "x")
    assert upright.size == (4, 8)
    assert (upright.getpixel((2, 0)), upright.getpixel((2, 7))) == ((0, 0, 0), (255, 255, 255))


def test_a_truncated_image_is_refused_and_named():
    whole = encoded(Image.fromarray(np.random.default_rng(1).integers(0, 256, (32, 32, 3), dtype=np.uint8)), "JPEG")
    record = Record("r", "p", (Candidate(image=whole), Candidate(image=whole[: len(whole) // 2])), source="a.parquet row 7")
    with pytest.raises(RecordError, match=r"a\.parquet row 7, candidate 1: the image does not decode .*expected a whole JPEG"):
        check_images(record)


@pytest.mark.parametrize("data", [b"", b"not an image", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"])
def test_bytes_that_are_no_image_are_refused(data):
    with pytest.raises(RecordError, match="here: the image does not decode"):
        decode_image(data, "here")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_damaged_bytes_either_decode_or_raise_a_record_error(kind):
    chance = random.Random(kind)
    whole = encoded(Image.fromarray(np.random.default_rng(2).integers(0, 256, (24, 24, 3), dtype=np.uint8)), kind)
    refused = 0
    for _ in range(200):
        damaged = bytearray(whole)
        for _ in range(chance.randrange(1, 6)):
            damaged[chance.randrange(min(len(whole), 200))] = chance.randrange(256)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of what it then mends
            try:
                decode_image(bytes(damaged), "x")
            except RecordError:
                refused += 1
    assert refused > 10
