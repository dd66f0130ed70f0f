"""Datasets that are packed: a zip or tar file with tables and pictures is unpacked beside nothing of the user's, and removed again.

An archive is data of a stranger: names that lead out of it, links, and sizes out of proportion are refused before anything is written.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import stat
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import IO

from diffalign.core.errors import RecordError
from diffalign.data.readers.folders import side_of
from diffalign.data.readers.sources import FORMATS, kind_of, local_path

ZIP, TAR = (".zip",), (".tar", ".tgz", ".tar.gz")
MOST_FILES, EXPANSION, LEAST = 1_000_000, 200, 2**30  # files; growth that is allowed, and bytes that always are
PEEK = 1000  # files of a tar file that tell whether it holds tables or folders of pairs, and is no webdataset shard
CHUNK = 2**20
TABLES = frozenset(FORMATS) - {".json", ".json.gz", ".tar", ".tar.gz", ".tgz"}  # whose presence tells that a tar file is no shard
UNREADABLE = (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, OSError, ValueError, NotImplementedError, RuntimeError)


@contextlib.contextmanager
def unpacked(source: str) -> Iterator[str]:
    """Give the folder that a packed dataset is unpacked to for the block; any other source is given as it is.

    Raises RecordError that names the archive: for one that is damaged or not safe to unpack, and in the place of errors within the block
    that name the folder.
    """
    path = local_path(source)
    if not path.is_file() or not _is_packed(path):
        yield source
        return
    with tempfile.TemporaryDirectory(prefix="diffalign-", ignore_cleanup_errors=True) as folder:
        try:
            _unpack(path, Path(folder))
        except UNREADABLE as error:
            raise RecordError(f"{path}: cannot be unpacked ({error})") from error
        try:
            yield folder
        except RecordError as error:
            raise RecordError(str(error).replace(folder, source)) from error


def _is_packed(path: Path) -> bool:
    kind = kind_of(path)
    if kind in ZIP:
        return True
    if kind not in TAR:
        return False
    try:
        with tarfile.open(path) as archive:
            names = [PurePosixPath(member.name) for member in islice(archive, PEEK) if member.isfile()]
    except UNREADABLE as error:
        raise RecordError(f"{path}: cannot be read as a tar file ({error})") from error
    return any(kind_of(Path(name.name)) in TABLES or any(side_of(part) for part in name.parent.parts) for name in names)


def _unpack(path: Path, folder: Path) -> None:
    budget = max(LEAST, EXPANSION * path.stat().st_size)
    entries = _zip_entries(path) if kind_of(path) in ZIP else _tar_entries(path)
    for number, (name, size, content) in enumerate(entries):
        target = folder / _safe(name, path)
        budget -= size
        if number >= MOST_FILES or budget < 0 or size > shutil.disk_usage(folder).free:
            raise RecordError(f"{path}: unpacks to too many files, or to more than {EXPANSION} times its size or than the disk holds")
        target.parent.mkdir(parents=True, exist_ok=True)
        with content, target.open("xb") as file:
            _copy(content, file, size, f"{path}: {name[:200]}")


def _copy(content: IO[bytes], file: IO[bytes], size: int, where: str) -> None:
    while chunk := content.read(CHUNK):
        size -= len(chunk)
        if size < 0:
            raise RecordError(f"{where}: is larger than the archive says")
        file.write(chunk)


def _safe(name: str, path: Path) -> PurePosixPath:
    """Return an entry's path below the archive. Raises RecordError for one that leads out of it."""
    parts = PurePosixPath(name.replace("\\", "/"))
    if parts.is_absolute() or not parts.parts or ".." in parts.parts or re.match("[A-Za-z]:", name) or "\0" in name:
        raise RecordError(f"{path}: the entry {name[:200]!r} leads out of the archive; expected names of files below it")
    return parts


def _zip_entries(path: Path) -> Iterator[tuple[str, int, IO[bytes]]]:
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            if stat.S_ISLNK(entry.external_attr >> 16):
                raise RecordError(f"{path}: the entry {entry.filename[:200]!r} is a link; expected files and folders")
            if not entry.is_dir():
                yield entry.filename, entry.file_size, archive.open(entry)


def _tar_entries(path: Path) -> Iterator[tuple[str, int, IO[bytes]]]:
    with tarfile.open(path) as archive:
        for entry in archive:
            content = archive.extractfile(entry) if entry.isreg() else None
            if content is not None:
                yield entry.name, entry.size, content
            elif not entry.isdir():
                raise RecordError(f"{path}: the entry {entry.name[:200]!r} is a link or a device; expected files and folders")
