"""Rows as files give them: values by column name, forgiving of the names' case and blanks, and the place in the file."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class RawRow:
    """What a file holds in one row: any value, its line in a text file, and why it cannot be read, if it cannot."""

    value: Any
    line: str = ""
    broken: str = ""


class Columns(Mapping[str, Any]):
    """Values by column name. A name that is not there finds the column that differs in case, blanks or hyphens only.

    >>> Columns({"Image 0": "a.png"})["image_0"]
    'a.png'
    """

    __slots__ = ("_values",)

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = values

    def __getitem__(self, name: str) -> Any:
        if name in self._values:
            return self._values[name]
        return self._values[_plain_names(tuple(self._values))[plain(name)]]

    def __contains__(self, name: object) -> bool:
        return name in self._values or (isinstance(name, str) and plain(name) in _plain_names(tuple(self._values)))

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"Columns({self._values!r})"


def plain(name: str) -> str:
    """Return a column's name in lower case, its blanks and hyphens as underscores."""
    return re.sub(r"[\s\-]+", "_", name.strip(" \t\ufeff\"'").lower())


@functools.lru_cache(maxsize=8)
def _plain_names(names: tuple[Any, ...]) -> dict[str, Any]:
    """Return the names by their plain form; the first of those that are alike."""
    return {plain(str(name)): name for name in reversed(names)}
