"""Replacing an earlier run: it is moved aside, comes back if the new one ends before its first checkpoint or result, and is removed after.

What is moved lies in `.replaced` inside the folder. Each move is a rename, and `settle` can tell from what lies there how far a killed
process had come: so nothing is lost at any moment.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path

from diffalign.core.documents import check_types, read_mapping
from diffalign.core.errors import ConfigError
from diffalign.core.locks import lives, owner

ASIDE, DISCARDED, OWNER, COMPLETE = ".replaced", ".replaced-discarded", "owner.json", "complete"
# What a new run leaves that is worth more than the old one.
PROGRESS = ("run.json", "checkpoint-*", "round-*/run.json", "round-*/checkpoint-*")


@contextlib.contextmanager
def claim(folder: Path, patterns: Sequence[str]) -> Iterator[None]:
    """Move what matches `patterns` in `folder` aside for the block; see above for when it comes back."""
    settle(folder)
    earlier = [path for pattern in patterns for path in sorted(folder.glob(pattern))]
    if not earlier:
        yield
        return
    aside = folder / ASIDE
    aside.mkdir()
    (aside / OWNER).write_text(json.dumps(owner() | {"patterns": list(patterns)}), encoding="utf-8")
    try:
        for path in earlier:
            path.replace(aside / path.name)
        (aside / COMPLETE).touch()
        yield
    finally:
        _settle(folder, list(patterns))


def settle(folder: Path, *, during_claim: bool = False) -> None:
    """Tidy up after a killed claim of `folder`: put the earlier run back, or remove it where the new one had got somewhere.

    A claim whose process lives, or is of another machine, is left alone; so is one of this process, `during_claim`.
    """
    shutil.rmtree(folder / DISCARDED, ignore_errors=True)
    aside = folder / ASIDE
    if not aside.is_dir() or aside.is_symlink():  # a link in a downloaded folder may lead anywhere
        return
    try:
        holder = read_mapping(aside / OWNER)
        check_types(holder, {"host": (str,), "pid": (int,), "started": (float, int), "patterns": (list,)}, str(aside), ConfigError)
        host, pid, started, patterns = (holder[name] for name in ("host", "pid", "started", "patterns"))
        if any(not isinstance(pattern, str) or "/" in pattern or "\\" in pattern or pattern in (".", "..") for pattern in patterns):
            raise ConfigError(f"{aside / OWNER}: patterns of another folder")  # which a downloaded one may have removed
    except (ConfigError, KeyError):
        _settle(folder, [])  # killed before anything was moved
        return
    ours = (host, pid) == (socket.gethostname(), os.getpid())
    if during_claim if ours else lives(host, pid, started) is not False:
        return
    _settle(folder, patterns)


def _settle(folder: Path, patterns: Sequence[str]) -> None:
    """Put the earlier run back, unless the new one has left a checkpoint or a result."""
    aside = folder / ASIDE
    if (aside / COMPLETE).exists():  # all that lies in the folder itself is of the new run
        if any(True for pattern in PROGRESS for _ in folder.glob(pattern)):
            aside.replace(folder / DISCARDED)  # at once: half an aside would look like one whose moves had not ended
            shutil.rmtree(folder / DISCARDED)
            return
        for path in [path for pattern in patterns for path in folder.glob(pattern)]:
            _remove(path)
        (aside / COMPLETE).unlink()
    for path in sorted(aside.iterdir()):
        if path.name != OWNER:
            path.replace(folder / path.name)
    shutil.rmtree(aside)


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
