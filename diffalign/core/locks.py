"""One process at a time writes a folder: a lock file, which a process that has died does not hold."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import psutil

from diffalign.core.documents import check_types, read_mapping
from diffalign.core.errors import ConfigError

LOCK = ".lock"


@contextlib.contextmanager
def locked(folder: Path, key: str = "output_dir") -> Iterator[None]:
    """Hold `folder` for the block, making it if need be; `key` is what an error calls it.

    Raises ConfigError where it cannot be written, or where another process holds it.
    """
    made = _make(folder, key)
    file = folder / LOCK
    _take(file, key)
    try:
        yield
    finally:
        file.unlink(missing_ok=True)
        for path in reversed(made):  # what nothing was written into
            with contextlib.suppress(OSError):
                path.rmdir()


def owner() -> dict[str, object]:
    """Return what tells this process from all others."""
    process = psutil.Process()
    return {"host": socket.gethostname(), "pid": process.pid, "started": process.create_time()}


def lives(host: str, pid: int, started: float) -> bool | None:
    """Return whether a process is there; None of another machine, of which this one cannot tell."""
    if host != socket.gethostname():
        return None
    with contextlib.suppress(psutil.Error, ValueError, OverflowError):
        return psutil.Process(pid).create_time() == started
    return False


def _make(folder: Path, key: str) -> list[Path]:
    """Make a folder and return what was not there before, outermost first. Raises ConfigError where it cannot be written."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()][::-1]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f"{LOCK}.{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ConfigError(f"`{key}`: {folder} cannot be written ({error.strerror or error}); choose another folder") from error
    return missing


def _take(file: Path, key: str) -> None:
    """Write the lock. Raises ConfigError where a living process, or one of another machine, holds it."""
    while True:
        try:
            with file.open("x", encoding="utf-8") as lock:
                json.dump(owner(), lock)
            return
        except FileExistsError:
            holder = _read(file)
            alive = False if holder is None else lives(**holder)
            if alive is not False:
                where = f"process {holder['pid']} of {holder['host']}" if holder else "another process"
                raise ConfigError(
                    f"`{key}`: {file.parent} is being written by {where}; wait for it or choose another folder (if it has ended, "
                    f"remove {file})"
                ) from None
            file.unlink(missing_ok=True)  # of a process that has died


def _read(file: Path) -> dict | None:
    """Return who holds a lock, None where a kill cut its file short or it has just gone."""
    try:
        holder = read_mapping(file)
        check_types(holder, {"host": (str,), "pid": (int,), "started": (float, int)}, str(file), ConfigError)
        return {name: holder[name] for name in ("host", "pid", "started")}
    except (ConfigError, KeyError):
        return None
