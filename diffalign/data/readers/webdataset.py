"""Rows of webdataset shards: tar files in which the files of one sample share a name up to the first dot.

Pictures become columns: `0001.jpg` is `image`, `0001.0.jpg` and `0001.image_0.jpg` are `image_0`, `0001.jpg_0` is `jpg_0`. The keys of
`0001.json` are columns themselves, `0001.txt` is `text`. Nothing is written to disk.
"""

from __future__ import annotations

import re
import tarfile
import zlib
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import Any

from diffalign.core.documents import parse_json
from diffalign.core.errors import RecordError
from diffalign.data.pictures import is_picture_name
from diffalign.data.readers.rows import RawRow
from diffalign.data.readers.text_lines import open_bytes

MEMBER_LIMIT = 2**28  # bytes of one file
UNREADABLE = (tarfile.TarError, zlib.error, EOFError, OSError, ValueError, OverflowError)
TEXTS = ("txt", "text", "caption", "prompt", "cls")


def webdataset_rows(path: Path) -> Iterator[RawRow]:
    """Yield one row for each sample. Raises RecordError where the file is no tar file or a file in it is too large."""
    try:
        with open_bytes(path) as file, tarfile.open(fileobj=file, mode="r|") as shard:
            files = ((PurePosixPath(member.name), _bytes(shard, member, path)) for member in shard if member.isfile())
            for key, sample in groupby(files, key=lambda item: item[0].with_name(item[0].name.partition(".")[0])):
                yield _row({name.name.partition(".")[2]: data for name, data in sample}, str(key))
    except UNREADABLE as error:
        raise RecordError(f"{path}: cannot be read as a tar file ({error})") from error


def _bytes(shard: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> bytes:
    if member.size > MEMBER_LIMIT:
        raise RecordError(f"{path}: {member.name[:200]} has {member.size} bytes; expected at most {MEMBER_LIMIT}")
    content = shard.extractfile(member)
    return b"" if content is None else content.read()


def _row(files: dict[str, bytes], key: str) -> RawRow:
    values: dict[str, Any] = {"__key__": key}
    for ending, data in files.items():
        try:
            if ending.lower() == "json":
                value = parse_json(data, key, RecordError)
                values |= value if isinstance(value, dict) else {"json": value}
            else:
                values[_column(ending)] = data.decode() if ending.lower().rpartition(".")[2] in TEXTS else data
        except (RecordError, UnicodeDecodeError) as error:
            return RawRow(None, f"sample {key}", f"{ending}: {error}")
    return RawRow(values, f"sample {key}")


def _column(ending: str) -> str:
    """Return the column of a file by what follows the first dot of its name.

    >>> [_column(ending) for ending in ("jpg", "0.jpg", "chosen.png", "jpg_0", "txt", "prompt.txt")]
    ['image', 'image_0', 'chosen', 'jpg_0', 'text', 'prompt']
    """
    stem, _, suffix = ending.lower().rpartition(".")
    if suffix in TEXTS:
        return stem or {"txt": "text", "cls": "label"}.get(suffix, suffix)
    if is_picture_name(f".{suffix}"):
        return f"image_{stem}" if re.fullmatch(r"\d", stem) else stem or "image"
    return ending.lower()
