"""The command line as it was typed: what reports say of how they were made, and what was said in it and not in a config file."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from contextvars import ContextVar

_WORDS: ContextVar[tuple[str, ...]] = ContextVar("words", default=())


def set_command_line(words: Sequence[str]) -> None:
    """Note the words behind `diffalign`."""
    _WORDS.set(tuple(words))


def command_line() -> str:
    """Return the whole line."""
    return shlex.join(["diffalign", *_WORDS.get()])


def given(flag: str) -> bool:
    """Return whether the line has a flag."""
    return any(word == f"--{flag}" or word.startswith(f"--{flag}=") for word in _WORDS.get())
