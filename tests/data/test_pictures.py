"""Whatever Pillow opens is a picture; everything else is refused with a reason, and no bytes raise anything but a RecordError."""

from __future__ import annotations

import contextlib
import io
import random
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin, features

from diffalign.core.errors import ConfigError, DiffalignError, RecordError
from diffalign.data import pictures
from diffalign.data.pictures import decode_image, image_size, is_picture_name, picture_suffixes, read_header, upright

CORNERS = {(0, 0): (255, 0, 0), (1, 0): (0, 255, 0), (0, 1): (0, 0, 255), (1, 1): (255, 255, 255)}  # (column, row) of the quarters
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", *(["AVIF"] if features.check("avif") else []))


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(height: int = 24, width: int = 40, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def quarters(height: int = 32, width: int = 48) -> Image.Image:
    """Return a picture of four colours, which says how it is turned."""
    image = Image.new("RGB", (width, height))
    for (across, down), colour in CORNERS.items():
        image.paste(colour, (across * width // 2, down * height // 2, (across + 1) * width // 2, (down + 1) * height // 2))
    return image


def corners(image: Image.Image) -> dict[tuple[int, int], tuple[int, ...]]:
    at = {(a, d): image.getpixel((image.width // 4 + a * image.width // 2, image.height // 4 + d * image.height // 2)) for a, d in CORNERS}
    return {place: tuple(255 * round(channel / 255) for channel in colour) for place, colour in at.items()}


def sideways(kind: str, orientation: int) -> bytes:
    """Return the file of a picture that stands as `quarters` when it is turned as `orientation` says."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    undo = {6: 8, 8: 6}.get(orientation, orientation)
    return encoded(quarters().transpose(pictures.TURNS[undo]), kind, exif=exif)


def test_every_format_that_pillow_writes_and_reads_is_a_picture():
    wrong = []
    for kind in (*FORMATS, "JPEG2000", "PPM", "TGA", "ICO", "QOI", "SGI", "PCX", "DDS", "MPO", "IM"):
        data = encoded(quarters(64, 64), kind)
        if corners(decode_image(data, "x")) != CORNERS or image_size(data, "x") != (64, 64):
            wrong.append(kind)
    assert wrong == []


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_every_orientation_of_exif_is_turned_upright_and_the_header_says_the_upright_size(kind):
    for orientation in range(2, 9):
        data = sideways(kind, orientation)
        image = decode_image(data, "x")
        assert (orientation, image.size, corners(image)) == (orientation, (48, 32), CORNERS)
        assert (orientation, image_size(data, "x")) == (orientation, (32, 48))


def late_exif(data: bytes) -> bytes:
    """Return a PNG file with its eXIf chunk moved behind the pixels."""
    at = data.index(b"eXIf") - 4
    end = at + 12 + int.from_bytes(data[at : at + 4], "big")
    rest = data[:at] + data[end:]
    return rest[:-12] + data[at:end] + rest[-12:]  # before IEND


def test_exif_that_stands_behind_the_pixels_counts_too():
    data = late_exif(sideways("PNG", 6))
    assert corners(decode_image(data, "x")) == CORNERS
    assert image_size(data, "x") == (32, 48)


def test_an_opened_or_drawn_image_is_as_its_file_would_be():
    with Image.open(io.BytesIO(sideways("JPEG", 8))) as opened:
        assert corners(upright(opened, "x")) == CORNERS
    assert upright(Image.new("RGBA", (1, 1), (9, 9, 9, 0)), "x").getpixel((0, 0)) == (255, 255, 255)


def test_the_first_frame_of_an_animation_counts():
    frames = [quarters(), Image.new("RGB", (48, 32), "black")]
    for kind in ("GIF", "PNG", "WEBP", "TIFF"):
        data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
        assert (kind, corners(decode_image(data, "x"))) == (kind, CORNERS)


def test_bytes_that_are_no_picture_are_named_for_what_they_are():
    png, jpeg, webp = (encoded(noise(200, 200), kind) for kind in ("PNG", "JPEG", "WEBP"))
    cases = {
        "0 bytes": b"",
        "a web page": b"\n<!DOCTYPE html><html>",
        "a git-lfs pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:00",
        "HEIC: `pip install pillow-heif`": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(40),
        "SVG": b'<?xml version="1.0"?>\n<!-- drawn -->\n<svg width="3"></svg>',
        "XML": b'<?xml version="1.0"?><Error><Code>NoSuchKey</Code></Error>',
        "JSON": b'{"error": "rate limit"}',
        "PDF": b"%PDF-1.4 ",
        "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",  # which Pillow would hand to Ghostscript
        "an XML or HTML": "<p>".encode("utf-16"),
        "a camera's raw file": encoded(noise(), "TIFF", tiffinfo={254: 1, 271: "NIKON"}),
        "a file of data": b"\x93NUMPY\x01\0v\0{'descr'",
        "archive": b"PK\x03\x04" + bytes(30),
        "zero bytes": bytes(999),
        "base64": b"iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAA",
        "a text": b"not an image",
        "no picture of a format": b"\x07\x91" * 99,
        "a PNG file that is cut off at 40 %": png[: int(0.4 * len(png))],
        "a JPEG file that is cut off at": jpeg[: int(0.7 * len(jpeg))],
        "a WEBP file that is cut off at 50 %": webp[: len(webp) // 2],
        "a damaged PNG file": png[:8],
    }
    if "HEIF" in pictures._formats():  # the plugin is installed, and finds the same bytes damaged
        del cases["HEIC: `pip install pillow-heif`"]
    answers = {}
    for reason, data in cases.items():
        for read in (decode_image, image_size):
            try:
                read(data, "votes.csv row 7")
            except RecordError as error:
                answers[reason, read] = str(error)
    missing = [reason for reason in cases if reason not in answers.get((reason, decode_image), "")]
    assert missing == []
    assert all(text.startswith("votes.csv row 7: the image does not decode") and "0x" not in text for text in answers.values())


def test_too_many_pixels_are_refused_before_they_are_decoded(monkeypatch):
    data = encoded(Image.new("1", (9000, 8000)))  # 72 million pixels in a few kilobytes
    for read in (decode_image, image_size):
        with pytest.raises(RecordError, match=r"row 7: the image has 9000 x 8000 pixels.*at most 64 million.*DIFFALIGN_MAX_PIXELS"):
            read(data, "row 7")
    monkeypatch.setenv("DIFFALIGN_MAX_PIXELS", "72000000")
    assert image_size(data, "row 7") == (8000, 9000)
    monkeypatch.setenv("DIFFALIGN_MAX_PIXELS", "many")
    with pytest.raises(ConfigError, match="DIFFALIGN_MAX_PIXELS is 'many'"):
        image_size(data, "row 7")


def test_strips_are_refused():
    assert decode_image(encoded(Image.new("RGB", (2, 400))), "row 7").size == (2, 400)
    for size in ((1, 60_000), (402, 2)):
        with pytest.raises(RecordError, match=f"row 7: the image is a strip of {size[0]} x {size[1]} pixels; .* 200 to 1"):
            decode_image(encoded(Image.new("RGB", size)), "row 7")


def test_a_large_jpeg_is_decoded_at_a_fraction_of_its_size_where_a_small_picture_is_needed():
    for orientation in (1, 6):
        size = (512, 640) if orientation == 1 else (640, 512)
        exif = Image.Exif()
        exif[0x0112] = orientation
        data = encoded(quarters(*size), "JPEG", exif=exif, quality=95)
        small = decode_image(data, "x", least=(64, 80))
        assert small.size == (160, 128)  # a quarter, and twice what is needed
        assert decode_image(data, "x", least=(300, 64)).height == 512
        exact = np.asarray(decode_image(data, "x").resize((80, 64), Image.Resampling.BILINEAR), dtype=float)
        assert np.abs(np.asarray(small.resize((80, 64), Image.Resampling.BILINEAR), dtype=float) - exact).mean() < 1.0
    assert decode_image(encoded(quarters(512, 640)), "x", least=(64, 80)).size == (640, 512)  # PNG knows no fractions


def test_pictures_are_told_by_the_end_of_their_names():
    assert {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".jfif", ".avif", ".heic", ".jp2"} <= set(picture_suffixes())
    assert not {".pdf", ".eps", ".ps", ".mpg", ".txt", ".csv", ".json"} & set(picture_suffixes())
    pictured = ("a.PNG", "w/b.Tif", "https://example.com/x.webp?sig=1", "dir.v2/IMG_1.HEIC", "x.jfif")
    assert [name for name in pictured if not is_picture_name(name)] == []
    assert [name for name in ("a.txt", "png", "a.png.txt", "", "It costs 3.50") if is_picture_name(name)] == []


def damaged(data: bytes, chance: random.Random, within: int | None = None) -> bytes:
    """Return `data` with a few bytes changed, removed or repeated, among the first `within`."""
    result, end = bytearray(data), within or len(data)
    for _ in range(chance.randrange(1, 6) if data else 0):
        at = chance.randrange(min(end, len(result)))
        kind = chance.randrange(4)
        if kind < 2:
            result[at] = chance.randrange(256)
        elif kind == 2:
            del result[at : at + chance.randrange(1, 20)]
        else:
            result[at:at] = result[at : at + chance.randrange(1, 20)]
        if not result:
            return b""
    return bytes(result)


def photo(kind: str) -> bytes:
    """Return a small picture with EXIF data of a camera: numbers of every type, a thumbnail's directory, an orientation."""
    exif = Image.Exif()
    exif[0x0112], exif[0x010F], exif[0x0132] = 6, "maker", "2024:01:02 03:04:05"
    exif[0x011A], exif[0x9286] = 72.0, b"UNICODE\0a comment"
    exif.get_ifd(0x8769).update({0x829A: 0.01, 0x8827: 100, 0x9000: b"0232"})
    exif.get_ifd(0x8825).update({1: "N", 2: (1.0, 2.0, 3.0)})
    return encoded(noise(), kind, exif=exif)


def test_damaged_files_and_metadata_raise_nothing_but_an_error_of_this_package():
    chance, escaped, refused, sound = random.Random(0), [], 0, 0
    files = [(encoded(noise(), kind), None) for kind in FORMATS]
    files += [(encoded(noise().convert("P"), "PNG", transparency=0), None), (encoded(noise().convert("I;16"), "TIFF"), None)]
    files += [(photo(kind), 500) for kind in ("JPEG", "WEBP", "PNG", *FORMATS[6:])]
    files += [(encoded(noise(), "JPEG", icc_profile=bytes(chance.randrange(256) for _ in range(300))), 400)]
    for number in range(3000):
        whole, within = files[number % len(files)] if number >= 50 else (files[0][0][:number], None)
        data = damaged(whole, chance, within)
        try:
            read_header(data, "x")
            decode_image(data, "x", least=(8, 8))
            sound += 1
        except DiffalignError:
            refused += 1
        except BaseException as error:
            escaped.append((repr(error), data))
    assert escaped == []
    assert min(refused, sound) > 100


def exif_of(kind: str, data: bytes) -> tuple[int, int]:
    """Return where the EXIF data of a picture begins and ends in its file."""
    name = {"JPEG": b"Exif", "WEBP": b"EXIF", "PNG": b"eXIf"}[kind]
    at = data.index(name)
    if kind == "JPEG":
        return at, at - 2 + int.from_bytes(data[at - 2 : at], "big")
    if kind == "WEBP":
        return at + 8, at + 8 + int.from_bytes(data[at + 4 : at + 8], "little")
    return at + 4, at + 4 + int.from_bytes(data[at - 4 : at], "big")


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "PNG"])
def test_broken_exif_does_not_cost_the_picture(kind):
    chance, lost, turned = random.Random(1), 0, 0
    whole = photo(kind)
    start, end = exif_of(kind, whole)
    for number in range(300):
        data = bytearray(whole)
        for _ in range(chance.randrange(1, 9)):
            data[chance.randrange(start, end)] = chance.randrange(256)
        if kind == "PNG" and number % 2:  # with a checksum that fits, too
            data[end : end + 4] = zlib.crc32(data[start - 4 : end]).to_bytes(4, "big")
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # none of Pillow's comes through
            try:
                turned += decode_image(bytes(data), "x").size == (24, 40)
            except RecordError:
                lost += 1
    assert lost == 0
    assert 0 < turned < 300  # where the orientation can still be read, and where it cannot


def test_a_png_file_with_too_large_a_text_or_profile_keeps_its_pixels():
    pixels, notes = noise(), PngImagePlugin.PngInfo()
    notes.add_text("workflow", "x" * 3_000_000, zip=True)
    for data in (encoded(pixels, pnginfo=notes), encoded(pixels, icc_profile=bytes(3_000_000))):
        assert decode_image(data, "x").tobytes() == pixels.tobytes()
        assert image_size(data, "x") == (24, 40)


def test_bytes_of_other_things_are_no_picture():
    chance = np.random.default_rng(0)
    things = [chance.bytes(2000) for _ in range(300)] + [chance.normal(size=300).astype(kind).tobytes() for kind in ("f2", "f4", "f8")]
    things += [np.arange(900, dtype=kind).tobytes() for kind in ("u1", "u2", "u4")] + [bytes(5000), b"\1" * 5000]
    decoded = []
    for thing in things:
        with contextlib.suppress(RecordError):
            decode_image(thing, "x")
            decoded.append(thing[:16])
    assert decoded == []


def test_a_phones_picture_with_a_damaged_list_of_further_pictures_is_itself_kept():
    whole, chance = encoded(noise(), "MPO", save_all=True, append_images=[noise(seed=1)]), random.Random(3)
    start = whole.index(b"MPF")
    end = start - 2 + int.from_bytes(whole[start - 2 : start], "big")
    for _ in range(200):
        data = bytearray(whole)
        for _ in range(chance.randrange(1, 9)):
            data[chance.randrange(start, end)] = chance.randrange(256)
        assert decode_image(bytes(data), "x").size == (40, 24)
