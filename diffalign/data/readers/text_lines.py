"""Lines of text files as people save them: the encoding is found, gzip is opened, and nothing but a newline ends a line.

A byte that does not fit the encoding stays in its line as half a surrogate pair, so that the lines around it are still read; `fault`
says what is wrong with such a line.
"""

from __future__ import annotations

import functools
import gzip
import io
import logging
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, cast

from diffalign.core.errors import RecordError

logger = logging.getLogger(__name__)

LINE_LIMIT = 2**28  # characters of a line
HEAD = 4096  # bytes that are looked at for the encoding
BOMS = {b"\xff\xfe\0\0": "utf-32", b"\0\0\xfe\xff": "utf-32", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16", b"\xef\xbb\xbf": "utf-8-sig"}
ESCAPED = re.compile("[\udc80-\udcff]")  # what errors="surrogateescape" makes of bytes that are not UTF-8
# Bytes that are no letters of Windows-1252, or more in a row than words in it have.
FOREIGN = re.compile("[\udc81\udc8d\udc8f\udc90\udc9d]|[\udc80-\udcff]{4}")
EXPANSION, LEAST = 200, 2**30  # a gzip file is refused that grows by more than this factor, once it has given so many bytes
CURE = "save the file as UTF-8 (in Excel: Save As, CSV UTF-8)"


class _Bounded(io.RawIOBase):
    """The bytes of a gzip file; raises RecordError where they are out of proportion to the file's size."""

    def __init__(self, path: Path) -> None:
        self._path, self._file, self._given = path, gzip.GzipFile(path, "rb"), 0
        self._most = max(LEAST, EXPANSION * path.stat().st_size)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]  # the stub's Buffer has no len
        data = self._file.read(len(buffer))
        self._given += len(data)
        if self._given > self._most:
            raise RecordError(f"{self._path}: unpacks to more than {EXPANSION} times its size; expected a table, not an archive bomb")
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()


def open_bytes(path: Path) -> IO[bytes]:
    """Return the bytes of a file, unpacked if its name ends in .gz or .tgz."""
    if path.suffix.lower() in (".gz", ".tgz"):
        return cast("IO[bytes]", io.BufferedReader(_Bounded(path)))
    return path.open("rb")


def encoding_of(path: Path) -> str:
    """Return the Unicode encoding that a file's first bytes tell: by a byte order mark, or by the zeros of UTF-16; else UTF-8."""
    try:
        with open_bytes(path) as file:
            head = file.read(HEAD)
    except (EOFError, zlib.error, OSError) as error:
        raise RecordError(f"{path}: cannot be read as {''.join(path.suffixes[-2:])} ({error})") from error
    for mark, encoding in BOMS.items():
        if head.startswith(mark):
            return encoding
    zeros = [head[start::2].count(0) / max(1, len(head) // 2) for start in (0, 1)]
    if max(zeros) > 0.4 and min(zeros) < 0.1:
        return "utf-16-be" if zeros[0] > zeros[1] else "utf-16-le"
    return "utf-8"


def text_lines(path: Path) -> Iterator[str]:
    """Yield the lines of a text file with their ends. Bytes that are not UTF-8 are read as Windows-1252 where the whole file fits that.

    Raises RecordError for a line of more than `LINE_LIMIT` characters, and for a damaged file.
    """
    for line in _lines(path):
        escaped = not line.isascii() and ESCAPED.search(line)
        yield _western(line) if escaped and _is_western(path, path.stat().st_mtime_ns) else line


def _lines(path: Path) -> Iterator[str]:
    encoding = encoding_of(path)
    errors = "surrogateescape" if encoding.startswith("utf-8") else "strict"
    with open_bytes(path) as raw, io.TextIOWrapper(raw, encoding, errors, newline="") as file:
        number = 0
        while line := _next(file, path, encoding):
            number += 1
            if len(line) == LINE_LIMIT and not line.endswith(("\n", "\r")):
                raise RecordError(f"{path} line {number}: more than {LINE_LIMIT} characters; expected a text table with a row a line")
            yield line


def _next(file: io.TextIOWrapper, path: Path, encoding: str) -> str:
    try:
        return file.readline(LINE_LIMIT)
    except (UnicodeDecodeError, EOFError, zlib.error, OSError) as error:
        raise RecordError(f"{path}: cannot be read as {encoding} text ({error}); {CURE}") from error


@functools.lru_cache(maxsize=32)
def _is_western(path: Path, time: int) -> bool:  # noqa: ARG001  # the file's time tells a new answer from one that is kept
    """Return whether a file that is not UTF-8 is Windows-1252, and log it: its letters never form UTF-8, and all its bytes fit."""
    example = ""
    for number, line in enumerate(_lines(path), start=1):
        if line.isascii():
            continue
        if not ESCAPED.search(line) or FOREIGN.search(line):
            return False
        example = example or f"line {number} is then: {_western(line).strip()[:60]}"
    logger.warning("%s is not UTF-8 and is read as Windows-1252; %s", path, example)
    return True


def _western(line: str) -> str:
    return line.encode("utf-8", "surrogateescape").decode("windows-1252", "surrogateescape")


def fault(text: str) -> str:
    """Return what is wrong with the bytes of a text from `text_lines`, and the cure; an empty text if nothing is."""
    if found := ESCAPED.search(text):
        byte = ord(found[0]) - 0xDC00
        letter = bytes([byte]).decode("windows-1252", "replace")
        return f"the byte 0x{byte:02x} is not UTF-8 ({letter!r} in Windows-1252, if it was saved in that); {CURE}"
    return "it holds a zero byte; expected text" if "\0" in text else ""
