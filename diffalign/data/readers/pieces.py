"""A source in pieces, which one process reads one after the other, or several at once: the same pieces however many these are.

A piece of a parquet file is some of its row groups, which are read by whoever parses them; of any other source it is the rows themselves.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from diffalign.data.readers.base import Row
from diffalign.data.readers.sources import dataset_files, file_rows, is_dataset, is_local, kind_of, open_rows

ROWS = 256  # of a piece, at most, where it is rows; at least, but for the last of a file, where it is row groups
BYTES = 2**27  # of a piece that is row groups, before compression


class Piece(Protocol):
    """Some rows of a source."""

    def rows(self) -> Iterator[Row]:
        """Yield them."""
        ...


@dataclass(frozen=True, slots=True)
class Held:
    """Rows that have been read."""

    content: tuple[Row, ...]

    def rows(self) -> Iterator[Row]:
        """Yield them."""
        return iter(self.content)


@dataclass(frozen=True, slots=True)
class RowGroups:
    """Some row groups of a parquet file, of which `first` is the number of the first row."""

    path: Path
    name: str
    groups: tuple[int, ...]
    first: int
    alone: bool  # whether the file is the whole source

    def rows(self) -> Iterator[Row]:
        """Read them."""
        return file_rows(self.path, self.name, alone=self.alone, groups=self.groups, first=self.first)


def pieces(opened: Callable[[Any, str | None], Iterator[Row]], source: Any, split: str | None = None, first: int = 0) -> Iterator[Piece]:
    """Yield the pieces of a source from number `first` on, as `opened` of a reader gives its rows; errors as there."""
    whole = _in_pieces(opened, source, split, first)
    if is_dataset(source) or (opened is open_rows and not is_local(source)):
        return whole  # a stream, which skips by itself
    return itertools.islice(whole, first, None)


def _in_pieces(opened: Callable[[Any, str | None], Iterator[Row]], source: Any, split: str | None, first: int) -> Iterator[Piece]:
    if opened is not open_rows:
        yield from _held(opened(source, split))
    elif is_dataset(source) or not is_local(source):
        yield from _held(open_rows(source, split, skip=first * ROWS))
    else:
        files = dataset_files(source, split)
        for file, name in files:
            groups = _row_groups(file, name, alone=len(files) == 1)
            yield from _held(file_rows(file, name, alone=len(files) == 1)) if groups is None else groups


def _held(rows: Iterable[Row]) -> Iterator[Held]:
    own = iter(rows)
    while content := tuple(itertools.islice(own, ROWS)):
        yield Held(content)


def _row_groups(file: Path, name: str, *, alone: bool) -> list[RowGroups] | None:
    """Return the pieces of a parquet file; None of any other, of one that cannot be read, and of one whose row groups are too large."""
    if kind_of(file) != ".parquet":
        return None
    try:
        facts = pq.read_metadata(file)
    except (pa.ArrowException, OSError, ValueError):
        return None
    sizes = [(facts.row_group(i).num_rows, facts.row_group(i).total_byte_size) for i in range(facts.num_row_groups)]
    if not facts.num_rows or any(size > BYTES for _, size in sizes):
        return None
    found, groups, first, rows, held = list[RowGroups](), list[int](), 0, 0, 0
    for number, (count, size) in enumerate(sizes):
        if groups and held + size > BYTES:
            found.append(RowGroups(file, name, tuple(groups), first, alone))
            groups, first, rows, held = [], first + rows, 0, 0
        groups, rows, held = [*groups, number], rows + count, held + size
        if rows >= ROWS or number == len(sizes) - 1:
            found.append(RowGroups(file, name, tuple(groups), first, alone))
            groups, first, rows, held = [], first + rows, 0, 0
    return found
