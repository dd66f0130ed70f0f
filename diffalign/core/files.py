"""Files and folders that are there whole or not at all, whatever is killed while they are written."""

from __future__ import annotations

import contextlib
import glob
import json
import logging
import os
import shutil
import socket
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from diffalign.core.errors import TableError

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Give a temporary folder beside `path` that takes its name on success and vanishes on an error; replaces an old one."""
    path = path.resolve()  # so that a link goes on pointing to the table
    if path.is_file():
        raise TableError(f"{path} is a file; expected a folder, or nothing there yet")
    settle(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary, aside = (path.with_name(f"{_name(path)}{os.getpid()}.{end}") for end in ("tmp", "old"))
    temporary.mkdir()
    mode = _mode(temporary)
    try:
        with named(path):
            yield temporary
        _share(temporary.rglob("*"), mode)
        if path.exists():
            path.replace(aside)
        temporary.replace(path)
    finally:
        if aside.exists() and not path.exists():
            aside.replace(path)
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(aside, ignore_errors=True)


@contextlib.contextmanager
def named(path: Path) -> Iterator[None]:
    """Let an error of the disk in the block say what was being written, where it does not: some libraries leave that out."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise


def free(path: Path) -> str:
    """Return how much room there is on the disk that `path` is on, or will be, in words."""
    there = next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists())
    return f"{shutil.disk_usage(there).free / 2**20:,.0f} MiB are free on the disk of {path}"


def settle(path: Path) -> None:
    """Tidy up after killed writers of the folder `path`: put back what one had moved aside, and remove what they had begun.

    Writers that live are left alone, and those of other machines, of which this one cannot tell; a warning names what these left.
    """
    path = path.resolve()
    for end in ("old", "tmp"):
        others = set(path.parent.glob(f".{glob.escape(path.name)}.*-*.{end}")) - set(path.parent.glob(f"{glob.escape(_name(path))}*.{end}"))
        for left in sorted(others):
            logger.warning("%s is of another machine: unless it is being written there, remove it", left)
        for left in path.parent.glob(f"{glob.escape(_name(path))}*.{end}"):
            writer = left.stem.rpartition("-")[2]
            if not writer.isdecimal() or (int(writer) != os.getpid() and psutil.pid_exists(int(writer))):
                continue
            if end == "old" and not path.exists():
                with contextlib.suppress(FileNotFoundError):  # another process has just put it back
                    left.replace(path)
            shutil.rmtree(left, ignore_errors=True)


def _name(path: Path) -> str:
    """Return how the names of all folders begin that processes of this machine write or put aside for `path`."""
    return f".{path.name}.{socket.gethostname()}-"


def plain(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return `facts` as strict JSON holds them: numpy as Python's own, not finite as None, any other kind as text."""
    text = json.dumps(dict(facts), default=lambda value: value.tolist() if isinstance(value, np.ndarray | np.generic) else str(value))
    return json.loads(text, parse_constant=lambda _: None)


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Give a temporary name beside `path` to write to, which takes its place on success and vanishes on an error; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.touch()
    mode = _mode(temporary)
    try:
        yield temporary
        _share([temporary], mode)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def files_for(folder: Path) -> Iterator[Path]:
    """Give a temporary folder inside `folder`, whose files all move up on success and vanish on an error; `folder` is made."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".weights-") as name:
        temporary = Path(name, "new")
        temporary.mkdir()
        mode = _mode(temporary)
        yield temporary
        _share(temporary.iterdir(), mode)
        for file in temporary.iterdir():
            file.replace(folder / file.name)


def _mode(path: Path) -> int:
    """Return the permissions that the umask gives new files, from those of a file or folder that has just been made."""
    return path.stat().st_mode & 0o666


def _share(paths: Iterable[Path], mode: int) -> None:
    """Give files the permissions `mode`: some libraries write theirs for the owner alone."""
    for path in paths:
        if path.is_file() and not path.is_symlink():
            path.chmod(mode)


def write(texts: Mapping[Path, str]) -> None:
    """Write files of one folder, making it: each of them whole or not at all, and none before all are on the disk."""
    with contextlib.ExitStack() as stack:
        for path, text in reversed(list(texts.items())):  # a stack is left from its top, so the first file takes its place first
            stack.enter_context(atomic_file(path)).write_text(text, encoding="utf-8", errors="xmlcharrefreplace")


def readable(size: float) -> str:
    """Return bytes in GiB, or MiB below one.

    >>> readable(3 * 2**29), readable(2**20)
    ('1.50 GiB', '1.00 MiB')
    """
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.2f} MiB"
