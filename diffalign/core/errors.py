"""One tree of errors. A message says what was found, what was expected and where (file, row, key)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches


class DiffalignError(Exception):
    """Base of every error this package raises on purpose; `status` is the exit status that the command line gives it."""

    status = 2


class ConfigError(DiffalignError):
    """A key, flag, constant or path of a configuration is wrong."""


class RecordError(DiffalignError):
    """A row of a dataset cannot be read; the message names the source and the row."""


class TableError(DiffalignError):
    """A preference table or a cache beside it is missing, stale or damaged."""


class CheckpointError(DiffalignError):
    """A model folder, checkpoint or adapter file is missing, incomplete or of another kind."""


class LatentError(CheckpointError):
    """The VAE gives latents that are not finite; `images` are their positions in the batch."""

    def __init__(self, message: str, images: Sequence[int]) -> None:
        super().__init__(message)
        self.images = images


class TrainingError(DiffalignError):
    """Training cannot go on: too many bad steps, or nothing to train on."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return a hint for an unknown `name`: the nearest known one, or all of them where none is near.

    >>> did_you_mean("ddpo", ["dpo", "ipo"]), did_you_mean("x", ["dpo", "ipo"])
    (' Did you mean `dpo`?', ' Known: dpo, ipo.')
    """
    known = sorted(known)
    near = get_close_matches(name, known, n=1, cutoff=0.6)
    return f" Did you mean `{near[0]}`?" if near else f" Known: {', '.join(known)}."


def known(name: str, value: str, table: Iterable[str]) -> None:
    """Raise ConfigError for the value of a key that is not in `table`, with the nearest that is."""
    if value not in table:
        raise ConfigError(f"`{name}` is {value!r}.{did_you_mean(value, table)}")
