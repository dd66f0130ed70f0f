"""The command line as it was typed: reports print it, and some commands ask which flags it has beside those of a config file."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from contextvars import ContextVar

from diffalign.core.redaction import redacted

_WORDS: ContextVar[tuple[str, ...]] = ContextVar("words", default=())


def set_command_line(words: Sequence[str]) -> None:
    """Note the words behind `diffalign`."""
    _WORDS.set(tuple(words))


def command_line() -> str:
    """Return the whole line, passwords and keys of addresses hidden."""
    return shlex.join(["diffalign", *map(redacted, _WORDS.get())])


def has_flag(flag: str) -> bool:
    """Return whether the line has a flag, in either spelling: --a_b and --a-b."""
    return any(word.split("=", 1)[0].replace("-", "_") == f"__{flag}" for word in _WORDS.get())
