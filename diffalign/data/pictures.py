"""Opens pictures as people have them: any format that Pillow or its plugins read, with every fault told as a reason.

Nothing but RecordError leaves these functions, whatever the bytes are. Broken metadata never costs a picture whose pixels are sound.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import itertools
import os
import re
import struct
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

from PIL import ExifTags, Image, JpegImagePlugin, TiffImagePlugin

from diffalign.core.errors import ConfigError, RecordError
from diffalign.data.colours import flattened

Size = tuple[int, int]  # height, width

MOST_PIXELS = 64_000_000  # of one picture; larger ones cost gigabytes in every process that loads data
MOST_ASPECT = 200  # of the longer side to the shorter; a crop leaves nothing of a strip, and a scorer would enlarge it to gigabytes
LIMIT_VARIABLE = "DIFFALIGN_MAX_PIXELS"  # the environment variable that raises the limit
COMMON = ("JPEG", "PNG", "WEBP")  # tried first
# Formats that Pillow hands to other programs (a stranger's file would run them), or knows the names of alone.
NO_PIXELS = ("EPS", "WMF", "BUFR", "GRIB", "HDF5", "MPEG")
PLUGINS = {"pillow_heif": "register_heif_opener", "pillow_avif": "", "pillow_jxl": ""}  # package -> what registers it, if not its import
PLUGIN_SUFFIXES = (".heic", ".heif", ".hif", ".avif", ".jxl")  # pictures also where the plugin is missing: then the reason names it
HEAD = 1024  # bytes that tell what is no picture
JPEG, PNG = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"  # how their files begin
SHOWN = (b"iCCP", b"sRGB", b"gAMA", b"cHRM", b"eXIf")  # metadata of a PNG file that says how its pixels are shown
DRAFT = 2  # a JPEG file is decoded at no less than this many times the size it is needed at
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations of a picture that is turned by 90 degrees
# What people have in the place of pictures, by how it begins; the first that matches.
SIGNS = (
    (rb"\s*<(!doctype html|html|head|body)", "a web page"),
    (rb"version https://git-lfs", "a git-lfs pointer; fetch the files themselves with `git lfs pull`"),
    (rb"\s*(<\?xml.{0,200}?\?>\s*|<!--.{0,900}?-->\s*|<!doctype svg.{0,300}?>\s*)*<svg", "SVG, a drawing; convert it to PNG"),
    (rb"\s*<", "an XML or HTML text, as a server answers for a file that it does not have"),
    (rb"\s*[{\[][\s\"{\[\]}\d]", "a JSON text"),
    (rb"%PDF", "a PDF document; convert its pages to PNG"),
    (rb"%!PS|\xc5\xd0\xd3\xc6", "PostScript, a drawing; convert it to PNG"),
    (rb"....ftyp(heic|heix|heim|heis|hevc|hevx|mif1|msf1)", "HEIC: `pip install pillow-heif`, or convert it to JPEG"),
    (rb"....ftypavi[fs]", "AVIF: `pip install pillow-avif-plugin`, or convert it to PNG"),
    (rb"\0\0\0\x0cJXL |\xff\x0a", "JPEG XL: `pip install pillow-jxl-plugin`, or convert it to PNG"),
    (rb"....ftypcrx|FUJIFILMCCD-RAW|II(RO|RS|U\0)|MMOR", "a camera's raw file; develop it to JPEG or PNG"),
    (rb"....ftyp|RIFF....AVI |\x1aE\xdf\xa3|\0\0\x01[\xb3\xba]", "a video"),
    (rb"PK\x03\x04|\x1f\x8b|Rar!|7z\xbc\xaf|BZh|.{257}ustar", "an archive; unpack it"),
    (rb"\xd7\xcd\xc6\x9a|\x01\0\0\0.{36} EMF", "WMF or EMF, a drawing; convert it to PNG"),
    (rb"\x93NUMPY|PAR1|SQLite|\x89HDF|GRIB|BUFR", "a file of data, not of a picture"),
    (rb"/9j/|iVBORw0KGgo|UklGR|R0lGOD|data:image", "base64 text of a picture; decode it to bytes"),
    (rb"\0+\Z", "nothing but zero bytes"),
)


@dataclass(frozen=True, slots=True)
class Header:
    """What a picture's file says before its pixels: Pillow's name of the format, and height and width of the upright picture."""

    format: str
    height: int
    width: int


@functools.cache
def _formats() -> tuple[str, ...]:
    """Return Pillow's names of the formats that can be opened, with those of installed plugins."""
    Image.init()
    for package, registers in PLUGINS.items():
        with contextlib.suppress(ImportError, OSError):  # not installed, or without the library that it needs
            module = importlib.import_module(package)
            if registers:
                getattr(module, registers)()
    return (*COMMON, *(name for name in Image.ID if name not in (*COMMON, *NO_PIXELS)))


@functools.cache
def picture_suffixes() -> tuple[str, ...]:
    """Return the suffixes of picture files, in small letters with their dot: all that Pillow opens, and those of its plugins.

    >>> {".png", ".jpeg", ".bmp", ".avif", ".heic"} <= set(picture_suffixes())
    True
    """
    formats = _formats()
    readable = {suffix.lower() for suffix, name in Image.registered_extensions().items() if name in formats and name in Image.OPEN}
    return tuple(sorted(readable | set(PLUGIN_SUFFIXES)))


def is_picture_name(name: str) -> bool:
    """Return whether a file's name, path or address ends like that of a picture.

    >>> is_picture_name("w/A.JFIF"), is_picture_name("https://example.com/x.webp?size=2"), is_picture_name("w/a.txt")
    (True, True, False)
    """
    return name.lower().endswith(picture_suffixes()) or name.partition("?")[0].lower().endswith(picture_suffixes())


def decode_image(data: bytes, where: str, least: Size | None = None) -> Image.Image:
    """Return the upright RGB picture in `data`, fully decoded: in sRGB, transparency white, the first frame of an animation.

    With `least` (height, width) a large JPEG file may be decoded at a fraction of its size, no side of which is below twice that. Raises
    RecordError that names `where` and says what the bytes are instead, and for more pixels than the limit (`MOST_PIXELS`).

    >>> decode_image(encode_image(Image.new("RGBA", (2, 1), (0, 0, 0, 0))), "clear.png").getpixel((0, 0))
    (255, 255, 255)
    """
    with _opened(data, where) as image:
        if least is not None and image.format in ("JPEG", "MPO"):
            _draft(image, (least[1], least[0]) if _orientation(image) in SIDEWAYS else least)
        return upright(image, where)


def _draft(image: Image.Image, least: Size) -> None:
    """Have a JPEG file decoded at the smallest fraction of its size that is large enough and falls on whole pixels."""
    width, height = image.size
    for scale in (8, 4, 2):
        if width % scale == height % scale == 0 and width >= scale * DRAFT * least[1] and height >= scale * DRAFT * least[0]:
            image.draft(None, (width // scale, height // scale))
            return


def upright(image: Image.Image, where: str) -> Image.Image:
    """Return a copy of an image, opened or drawn, as `decode_image` gives it. Raises RecordError if its file does not decode."""
    try:
        image.load()
        turn = _orientation(image)  # that of a PNG file may stand after the pixels
        flat = flattened(image).copy()
    except RecordError as error:
        raise RecordError(f"{where}: the image does not decode: {error}") from error
    except Exception as error:  # each decoder has errors of its own
        raise RecordError(f"{where}: the image does not decode: {_damage(image, error)}") from error
    flat.info.clear()
    return flat.transpose(TURNS[turn]) if turn else flat


def read_header(data: bytes | IO[bytes], where: str) -> Header:
    """Return the format and size of the upright picture in `data`, from the header of its file. Raises RecordError that names `where`."""
    with _opened(data, where) as image:
        if (
            image.format == "PNG"
            and isinstance(data, bytes)
            and "exif" not in image.info
            and any(kind == b"eXIf" for kind, _ in _chunks(data))
        ):
            upright(image, where)  # its orientation stands after the pixels
        width, height = image.size[::-1] if _orientation(image) in SIDEWAYS else image.size
        return Header(image.format or "", height, width)


def image_size(data: bytes, where: str) -> Size:
    """Return (height, width) of the upright picture in `data`, read from its header. Raises RecordError that names `where`."""
    header = read_header(data, where)
    return header.height, header.width


def encode_image(image: Image.Image) -> bytes:
    """Return `image` as PNG bytes."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


@contextlib.contextmanager
def _opened(data: bytes | IO[bytes], where: str) -> Iterator[Image.Image]:
    """Give the picture in `data`, of which the header alone has been read, where Pillow's warnings are silent."""
    data = bytes(data) if isinstance(data, bytearray | memoryview) else data
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of what it then mends
        try:
            image = _open(data)
            width, height = image.size  # which damaged files may give more than two numbers
        except Exception as error:  # each decoder has errors of its own
            raise RecordError(f"{where}: the image does not decode: {_instead(data, error)}") from error
        with image:
            _check_size(width, height, where)
            if _is_raw(image, data):
                raise RecordError(f"{where}: the image does not decode: a camera's raw file; develop it to JPEG or PNG")
            yield image


def _open(data: bytes | IO[bytes]) -> Image.Image:
    """Return the picture in `data` with its header read. PNG and JPEG files that Pillow refuses are tried without metadata."""
    if not isinstance(data, bytes):
        return Image.open(data, formats=_formats())
    try:
        return Image.open(io.BytesIO(data), formats=_formats())
    except Exception:  # damaged metadata raises anything
        if data.startswith(JPEG):
            return JpegImagePlugin.JpegImageFile(io.BytesIO(data))  # without the further pictures that a damaged segment names
        if not data.startswith(PNG):
            raise
    # Pillow refuses a PNG file for one damaged or very large chunk of metadata. What its pixels need begins with a capital, or is tRNS.
    chunks = list(_chunks(data))
    needed = [kind[:1].isupper() or kind == b"tRNS" for kind, _ in chunks]
    whole = [kind in SHOWN and zlib.crc32(chunk[4:-4]).to_bytes(4, "big") == chunk[-4:] for kind, chunk in chunks]
    for kept in ([a or b for a, b in zip(needed, whole, strict=True)], needed):
        with contextlib.suppress(Exception):
            return Image.open(io.BytesIO(PNG + b"".join(itertools.compress((chunk for _, chunk in chunks), kept))), formats=("PNG",))
    return Image.open(io.BytesIO(data), formats=("PNG",))


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the name of each chunk of a PNG file, and the chunk with its length, its name and its checksum."""
    at = len(PNG)
    while at + 8 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        yield kind, data[at : at + length + 12]
        at += length + 12


def _is_raw(image: Image.Image, data: bytes | IO[bytes]) -> bool:
    """Return whether a TIFF file is a camera's raw file (DNG, CR2, NEF, ARW), in which Pillow finds but the thumbnail."""
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return False
    tags = image.tag_v2
    reduced = tags.get(ExifTags.Base.NewSubfileType) == 1 and ExifTags.Base.Make in tags
    return reduced or ExifTags.Base.DNGVersion in tags or (isinstance(data, bytes) and data[8:10] == b"CR")


def _check_size(width: int, height: int, where: str) -> None:
    """Raise RecordError for a picture of more pixels than the limit or of none, ConfigError for a limit that is no number."""
    written, pixels = os.environ.get(LIMIT_VARIABLE, str(MOST_PIXELS)), width * height
    if not written.isdecimal():
        raise ConfigError(f"the environment variable {LIMIT_VARIABLE} is {written!r}; expected a number of pixels")
    if pixels > int(written):
        raise RecordError(
            f"{where}: the image has {width} x {height} pixels, {pixels / 1e6:.0f} million; expected at most "
            f"{int(written) / 1e6:g} million, or a higher limit in the environment variable {LIMIT_VARIABLE}"
        )
    if max(width, height) > MOST_ASPECT * min(width, height) > 0:
        raise RecordError(f"{where}: the image is a strip of {width} x {height} pixels; expected sides of at most {MOST_ASPECT} to 1")
    if pixels == 0:
        raise RecordError(f"{where}: the image does not decode: it has no pixels ({width} x {height})")


def _orientation(image: Image.Image) -> int:
    """Return how the picture must be turned, as an EXIF orientation from 2 to 8; 0 where it stands upright or its EXIF data is broken."""
    if image.format == "TIFF":
        return 0  # Pillow turns these itself
    try:
        # The base class's method: that of PNG files decodes the whole image to look for EXIF data after it.
        orientation = Image.Image.getexif(image).get(ExifTags.Base.Orientation)
    except Exception:  # the pixels may be sound
        return 0
    return orientation if isinstance(orientation, int) and orientation in TURNS else 0


def _instead(data: bytes | IO[bytes], error: Exception) -> str:
    """Return what bytes are that Pillow does not open as a picture."""
    if isinstance(error, Image.DecompressionBombError):
        return "it has more pixels than Pillow opens"
    if isinstance(error, MemoryError):
        return "not enough memory"
    if not isinstance(data, bytes):
        data.seek(0)
        data = data.read()
    head = data[:HEAD].removeprefix(b"\xef\xbb\xbf")
    if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
        head = head.decode("utf-16", "ignore").encode()
    if not head:
        return "0 bytes"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP" and len(data) < (size := int.from_bytes(head[4:8], "little") + 8):
        return _cut_off("WEBP", len(data) / size)
    for name in _formats():
        accept = Image.OPEN[name][1]
        if accept is not None and accept(head[:16].ljust(16, b"\0")) is True:
            return f"a damaged {name} file, or one of a kind that Pillow does not read"
    for pattern, reason in SIGNS:
        if re.match(pattern, head, re.IGNORECASE | re.DOTALL):
            return reason
    return "no picture, but a text" if _is_text(head) else "no picture of a format that Pillow opens"


def _is_text(head: bytes) -> bool:
    return not re.search(rb"[\0-\x08\x0e-\x1f]", head)


def _damage(image: Image.Image, error: Exception) -> str:
    """Return why a picture whose header is sound does not decode."""
    if isinstance(error, MemoryError):
        return f"not enough memory for its {image.width} x {image.height} pixels"
    if not re.search("truncated|end of file|eof", f"{type(error).__name__} {error}", re.IGNORECASE):
        return f"a damaged {image.format} file" + (f" ({error})" if isinstance(error, OSError | SyntaxError) else "")
    share = 0.0
    with contextlib.suppress(Exception):
        share = image.im.getbbox()[3] / image.height  # the lowest row that was decoded before the end
    return _cut_off(image.format, share)


def _cut_off(name: str | None, share: float) -> str:
    tenths = round(10 * share)
    return f"a {name} file that is cut off" + (f" at {10 * tenths} %" if 0 < tenths < 10 else "")
