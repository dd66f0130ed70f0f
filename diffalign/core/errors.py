"""One tree of errors. A message says what was found, what was expected and where (file, row, key)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import SequenceMatcher, get_close_matches
from itertools import islice

SHORT = 4  # letters of a name in which one that is wrong weighs much
MOST_LISTED, MOST_COMPARED, LONGEST = 30, 10_000, 300  # names in a message, names that a misspelt one is compared with, characters of one

LONGEST_MESSAGE = 2_900


class DiffalignError(Exception):
    """Base of every error this package raises on purpose; `status` is the exit status that the command line gives it."""

    status = 2

    def __str__(self) -> str:
        """Return the message, cut where a file has put so much into it that nobody could read it."""
        text = super().__str__()
        return text if len(text) <= LONGEST_MESSAGE else f"{text[:LONGEST_MESSAGE]}..."


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


def nearest(name: str, names: Iterable[object]) -> str | None:
    """Return the one of `names` that `name` most likely stands for, None where none is near: no hint rather than a wrong one.

    Case, dashes and underscores do not count.

    >>> nearest("Diffusion-DPO", ["diffusion_npo", "diffusion_dpo"]), nearest("--fsdp", ["--seed"])
    ('diffusion_dpo', None)
    """
    near = _near(name, names)
    return near[0] if len(near) == 1 else None


def did_you_mean(name: str, names: Iterable[object]) -> str:
    """Return a hint for a `name` that is none of `names`: the nearest of them, or all where none is near.

    >>> did_you_mean("ddpo", ["dpo", "ipo"]), did_you_mean("x", ["dpo", "ipo"])
    (' Did you mean `dpo`?', ' Known: dpo, ipo.')
    >>> did_you_mean("beta", [])
    ' It takes none.'
    """
    names = sorted(map(str, names))
    if not names:
        return " It takes none."
    near = " or ".join(f"`{entry}`" for entry in _near(name, names))
    return f" Did you mean {near}?" if near else f" Known: {listed(names)}."


def _near(name: str, names: Iterable[object]) -> list[str]:
    """Return the names that are as near as any, at most two of them; none where none is near."""
    table = {_plain(str(entry)): str(entry) for entry in islice(names, MOST_COMPARED)}
    word = _plain(name[:LONGEST])
    if word in table:
        return [table[word]]
    near = get_close_matches(word, table, n=2, cutoff=0.66 if len(word) <= SHORT else 0.75)
    if near:
        return [table[entry] for entry in near if _likeness(word, entry) == _likeness(word, near[0])]
    longer = [entry for entry in table if min(len(word), len(entry)) > 2 and (entry.startswith(word) or word.startswith(entry))]
    return [table[longer[0]]] if len(longer) == 1 else []


def _likeness(word: str, entry: str) -> float:
    """Return how alike two names are, as `get_close_matches` counts it."""
    return SequenceMatcher(None, entry, word).ratio()


def listed(names: Iterable[str]) -> str:
    """Return names with commas between them, no more than an error can show.

    >>> listed(map(str, range(200_000)))[-25:]
    '28, 29 and 199,970 others'
    """
    names = list(names)
    shown = ", ".join(shortened(name) for name in names[:MOST_LISTED])
    return shown if len(names) <= MOST_LISTED else f"{shown} and {len(names) - MOST_LISTED:,} others"


def shortened(text: str) -> str:
    """Return a text as it is, or the beginning of a long one."""
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def check_name(key: str, value: str, table: Iterable[str]) -> None:
    """Raise ConfigError for the value of a key that is not in `table`, with the nearest that is."""
    if value not in table:
        raise ConfigError(f"`{key}` is {shortened(value)!r}.{did_you_mean(value, table)}")


def _plain(name: str) -> str:
    """Return a name as it is compared."""
    return name.lower().strip("-").replace("-", "_")
