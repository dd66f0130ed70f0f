"""What people put into a column of pictures: bytes, a list of numbers, base64, a data URI, or a path in any spelling."""

from __future__ import annotations

import base64
import binascii
import re
import reprlib
import urllib.parse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from diffalign.core.errors import RecordError

DATA_URI = re.compile(r"data:[\w./+-]*(;[\w.=-]+)*;base64,", re.IGNORECASE)
# How base64 begins of JPEG, PNG, WebP, GIF, BMP and TIFF files, which tells it from a path.
BASE64 = ("/9j/", "iVBORw0KGgo", "UklGR", "R0lGOD", "Qk", "SUkqA", "TU0AK")
SHORTEST = 64  # characters of base64; a shorter text is a path
ADDRESS = re.compile(r"(https?|s3|gs|ftp)://", re.IGNORECASE)
LOCAL_FILES = "/data/local-files/?d="
UPLOADS = "/data/upload/"  # where paths in exports of Label Studio begin
PATH_LIMIT = 4096  # characters


def encoded_image(value: Any, where: str, folder: Path, under: Sequence[str] = (".",)) -> bytes:
    """Return the encoded picture in one cell of a table; `where` names row and column.

    A path is relative to `folder`, the folder of the table, and is looked for in each subfolder `under` in turn. Raises RecordError for
    an address, which is never fetched, for a file that is not there, and for anything that is no picture's place or content.
    """
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path") or value.get("src") or value.get("url")
    if isinstance(value, list) and value and all(isinstance(part, int) and 0 <= part < 256 for part in value):
        return bytes(value)
    if isinstance(value, bytes) and value:
        return value
    if not isinstance(value, str) or not value.strip():
        raise RecordError(f"{where} holds {shown(value)}; expected image bytes or a path")
    if match := DATA_URI.match(value):
        return _decoded(value[match.end() :], where)
    if len(value) > SHORTEST and value.startswith(BASE64) and not re.search(r"[^\w+/=\s]", value):
        return _decoded(value, where)
    if ADDRESS.match(value.strip()):
        raise RecordError(
            f"{where} holds the address {shown(value)}; nothing is fetched: download the images first, and put their paths into the column"
        )
    return _file(value, where, folder, under)


def _decoded(text: str, where: str) -> bytes:
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise RecordError(f"{where} holds base64 text that cannot be decoded ({error})") from error


def _file(text: str, where: str, folder: Path, under: Sequence[str]) -> bytes:
    """Return the bytes of a file, whose path may have blanks around it, backslashes, or `file:` before it."""
    if len(text) > PATH_LIMIT or "\0" in text:
        raise RecordError(f"{where} holds {shown(text)}; expected image bytes or a path")
    plain = _from_uri(text.strip())
    spellings = list(dict.fromkeys((text, plain, plain.replace("\\", "/"))))
    if plain.startswith(UPLOADS):  # beside the export
        spellings += [plain.removeprefix("/data/"), plain.rpartition("/")[2]]
    try:
        for path in [folder / sub / Path(spelling).expanduser() for spelling in spellings for sub in under]:
            if path.is_file():
                return path.read_bytes()
    except (OSError, RuntimeError) as error:  # too long for a file name; or the `~name` of nobody
        raise RecordError(f"{where}: the image {shown(text)} cannot be read ({error})") from error
    places = dict.fromkeys(str(folder / sub / plain.replace("\\", "/")) for sub in under)
    raise RecordError(f"{where}: there is no image {' or '.join(places)}")


def _from_uri(text: str) -> str:
    """Return the path of a `file:` address, and the path of a picture in an export of Label Studio; any other text as it is."""
    if text.startswith(LOCAL_FILES):
        return urllib.parse.unquote(text.removeprefix(LOCAL_FILES))
    return urllib.parse.unquote(re.sub("^//[^/]*", "", text[5:])) if text.lower().startswith("file:") else text


def shown(value: Any) -> str:
    """Return a value for a message: its type, and its beginning."""
    text = repr(value[:100]) if isinstance(value, str | bytes) else reprlib.repr(value)
    return f"{'dict' if isinstance(value, dict) else type(value).__name__} {text if len(text) < 60 else text[:57] + '...'}"
