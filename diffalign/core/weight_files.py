"""Safetensors files as they lie on disk, whole or not: looked at without torch, and without reading a weight."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path, PurePath

from safetensors import SafetensorError, safe_open

from diffalign.core.documents import read_mapping
from diffalign.core.errors import CheckpointError

SUFFIX, INDEX = ".safetensors", ".safetensors.index.json"
DTYPES = ("F32", "F16", "BF16", "F64")  # in which weights are trained and published


def check_whole(folder: Path) -> None:
    """Raise CheckpointError for a safetensors file of a folder that is not whole, and for an index whose files are not all there."""
    for file in sorted(folder.glob(f"*{SUFFIX}")):
        names_of(file)
    for index in sorted(folder.glob(f"*{INDEX}")):
        places = read_mapping(index, CheckpointError).get("weight_map")
        if not isinstance(places, dict) or not all(isinstance(place, str) and PurePath(place).name == place for place in places.values()):
            raise CheckpointError(f"{index}: expected names of files beside it under `weight_map`")
        if missing := sorted({place for place in places.values() if not (folder / place).is_file()}):
            raise CheckpointError(f"{folder}: lacks {missing[0]}, which {index.name} names")


def check_floating(folder: Path) -> None:
    """Raise CheckpointError for a tensor of a folder's safetensors files that is not of floating-point numbers."""
    for file in sorted(folder.glob(f"*{SUFFIX}")):
        for name, dtype in dtypes_of(file):
            if dtype not in DTYPES:
                raise CheckpointError(f"{file}: `{name}` is of {dtype}; expected floating-point numbers of 16, 32 or 64 bits")


def names_of(file: Path) -> list[str]:
    """Return the names of a file's tensors. Raises CheckpointError for one that is missing, cut off, damaged or of another kind."""
    try:
        with safe_open(file, framework="numpy") as opened:
            return list(opened.keys())
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"{file}: {damage(file, error)}; expected a safetensors file") from error


def dtypes_of(file: Path) -> Iterator[tuple[str, str]]:
    """Yield the name of each tensor of a file and its dtype, as safetensors writes it. Raises CheckpointError as `names_of`."""
    names_of(file)
    with safe_open(file, framework="numpy") as opened:
        for name in opened.keys():  # noqa: SIM118  # a safe_open has keys, and is no mapping
            yield name, opened.get_slice(name).get_dtype()


def damage(file: Path, error: Exception) -> str:
    """Return why a safetensors file cannot be read, in words where its first bytes tell."""
    try:
        with file.open("rb") as opened:
            size, start = file.stat().st_size, opened.read(64)
    except OSError:
        return f"cannot be read ({error})"
    if size == 0:
        return "is empty (0 bytes)"
    if start.startswith(b"version https://git-lfs"):
        return "is a git-lfs pointer and not the file itself; fetch it with `git lfs pull`"
    if start.lstrip().lower().startswith((b"<!doctype", b"<html")):
        return "is a web page"
    header = struct.unpack("<Q", start[:8])[0] if size >= 8 else size
    cut = ", probably cut off" if header + 8 > size and start[8:9] == b"{" else ""
    return f"cannot be read: damaged, {size:,} bytes{cut} ({error})"
