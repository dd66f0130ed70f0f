"""A process that dies at its n-th deed, as far as the disk can tell: from then on it writes, moves and removes nothing more."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

DEEDS = [(Path, "replace"), (Path, "mkdir"), (Path, "unlink"), (Path, "write_text"), (os, "unlink"), (os, "rmdir")]


class Killed(BaseException):
    """What is raised at the deed, and at every one after it; nothing that handles errors may catch it."""


class Life:
    """Counts deeds, and ends at number `last`."""

    def __init__(self, last: int) -> None:
        self.deeds, self.last = 0, last

    def mortal(self, deed: Callable[..., Any]) -> Callable[..., Any]:
        """Return `deed`, counted, and not done from the last one on. Of a text that is written last, half reaches the disk."""

        def done(*args: Any, **options: Any) -> Any:
            self.deeds += 1
            if self.deeds == self.last and deed is WRITE:
                deed(args[0], args[1][: len(args[1]) // 2], **options)
            if self.deeds >= self.last:
                raise Killed
            return deed(*args, **options)

        return done


WRITE = Path.write_text


@contextmanager
def killed_at(last: int, *calls: tuple[Any, str]) -> Iterator[Life]:
    """Count the deeds on the disk and those named in `calls` (object, attribute), and end at number `last` without a word."""
    life = Life(last)
    with pytest.MonkeyPatch.context() as patch:
        for owner, name in (*DEEDS, *calls):
            patch.setattr(owner, name, life.mortal(getattr(owner, name)))
        try:
            yield life
        except Killed:
            assert life.deeds >= last


def killing(function: Callable[..., Any], survived: int) -> Callable[..., Any]:
    """Return `function`, which is killed after so many calls."""
    left = iter(range(survived))

    def called(*args: Any, **options: Any) -> Any:
        if next(left, None) is None:
            raise Killed
        return function(*args, **options)

    return called


def tree(folder: Path) -> dict[str, bytes]:
    """Return every file under `folder` by its path, and the empty folders."""
    found = sorted(folder.rglob("*"))
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else b"" for p in found if p.is_file() or not any(p.iterdir())}
