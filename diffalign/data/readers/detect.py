"""Finds the reader that fits a source, from the source's first rows."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffalign.core.errors import RecordError, listed
from diffalign.data.pictures import is_picture_name
from diffalign.data.readers import READERS
from diffalign.data.readers.base import Reader, Row
from diffalign.data.readers.sources import dataset_name, is_dataset, open_rows

Rows = Callable[[Any, str | None], Iterator[Row]]
PEEK = 8  # rows that are looked at
NAMED = 20  # columns that are looked at for data in the place of names


@dataclass(frozen=True, slots=True)
class _Beginning:
    """The first rows of a source, as one function opens it, and why there are not more."""

    rows: Sequence[Row]
    error: RecordError | None


def detect(source: Any, split: str | None = None) -> str:
    """Return the name of the reader that most of the first rows fit; if several do, the one that requires the most columns.

    Raises RecordError that says why the source does not open, or what the layout that it fits best lacks; else it lists the row's
    columns and the known layouts.
    """
    beginnings: dict[Rows, _Beginning] = {}
    for reader in READERS.values():
        if reader.rows not in beginnings:
            opens = reader.rows is open_rows or not is_dataset(source)  # the others open what lies in files of their own
            beginnings[reader.rows] = _beginning(reader.rows, source, split) if opens else _Beginning((), None)
    fits = {name: fit for name, reader in READERS.items() if (fit := _fit(reader, beginnings[reader.rows].rows))}
    best = [name for name, fit in fits.items() if fit == max(fits.values())]
    if len(best) == 1:
        return best[0]
    if best:
        raise RecordError(f"{dataset_name(source)}: {' and '.join(best)} fit equally well; name the one to use")
    raise _unknown(dataset_name(source), beginnings)


def _beginning(rows: Rows, source: Any, split: str | None) -> _Beginning:
    first: list[Row] = []
    error: RecordError | None = None
    try:
        for row in itertools.islice(rows(source, split), PEEK):
            first.append(row)  # the rows before an error are kept
    except RecordError as problem:
        error = problem
    return _Beginning(first, error or (None if first else RecordError(f"{dataset_name(source)}: no rows")))


def _fit(reader: Reader, rows: Sequence[Row]) -> tuple[int, bool, int] | None:
    """Return (columns required, whether values are looked at, rows that fit), or None where fewer than half of the whole rows fit."""
    whole = [row for row in rows if not row.broken or row.value]
    count = sum(_matches(reader, row) for row in whole)
    return (len(reader.columns), reader.matches is not None, count) if count and 2 * count >= len(whole) else None


def _matches(reader: Reader, row: Row) -> bool:
    if not (reader.columns or reader.matches):
        return False
    return _columns_there(reader, row) == len(reader.columns) and (reader.matches is None or reader.matches(row))


def _columns_there(reader: Reader, row: Row) -> int:
    return sum(any(name in row.value for name in column.split("|")) for column in reader.columns)


def _unknown(source: str, beginnings: dict[Rows, _Beginning]) -> RecordError:
    rows = [row for beginning in beginnings.values() for row in beginning.rows]
    errors = [beginning.error for beginning in beginnings.values() if beginning.error is not None]
    if not rows and not Path(source).is_dir():
        return errors[0]
    if reason := _nearest(beginnings):
        return reason
    whole = [row for row in rows if row.value]
    if whole:
        content = f"columns {_names(whole[0])}{_headless(whole[0])}"
    else:
        content = "; ".join(dict.fromkeys([*(row.broken for row in rows[:1]), *map(str, errors)]))
    rename = f"Names of columns are changed by df.rename(columns={{{_other(whole[0])!r}: 'image_0', ...}}). " if whole else ""
    layouts = "".join(f"\n  {name}: {reader.about}" for name, reader in READERS.items())
    return RecordError(f"{source}: no known layout. Found {content}. {rename}Known layouts:{layouts}")


def _nearest(beginnings: dict[Rows, _Beginning]) -> RecordError | None:
    """Return what the reader says of the first row that has most of its columns, at least two; None where no row has."""
    best: tuple[float, int] = (0.0, 1)
    reason: RecordError | None = None
    for name, reader in READERS.items():
        for row in beginnings[reader.rows].rows:
            there = _columns_there(reader, row)
            if there and (there / len(reader.columns), there) > best and there > 1:
                try:
                    reader.parse(row)
                except RecordError as error:
                    best = there / len(reader.columns), there
                    reason = RecordError(
                        f"{str(error).rstrip('.')}. It was read as `{name}`: {reader.about}. Its columns are {_names(row)}"
                    )
            if row.value:
                break
    return reason


def _other(row: Row) -> str:
    """Return a column's name that is no layout's, as far as one is needed for an example."""
    return next((str(name) for name in row.value if name not in ("prompt", "caption")), "YOURS")


def _names(row: Row) -> str:
    return listed(map(str, row.value))


def _headless(row: Row) -> str:
    """Return a hint where the first line of a table seems to be data, not names of columns."""
    if any(is_picture_name(str(name)) for name in itertools.islice(row.value, NAMED)):
        return " (the first line seems to be data; expected names of columns in it, such as prompt,image_0,image_1,label_0)"
    return ""
