"""Finds the reader that fits a source, from the source's first row."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from diffalign.core.errors import RecordError
from diffalign.data.readers import READERS
from diffalign.data.readers.base import Reader, Row

Rows = Callable[[str, str | None], Iterator[Row]]


def detect(source: str, split: str | None = None) -> str:
    """Return the name of the reader whose columns the first row has; if several fit, the one that requires the most columns.

    Raises RecordError that lists the row's columns and the known layouts, or says why the source does not open.
    """
    first_rows: dict[Rows, Row | RecordError] = {}
    for reader in READERS.values():
        if reader.rows not in first_rows:
            first_rows[reader.rows] = _first_row(reader.rows, source, split)
    fits = {name: _specificity(reader) for name, reader in READERS.items() if _matches(reader, first_rows[reader.rows])}
    best = [name for name, specificity in fits.items() if specificity == max(fits.values())]
    if len(best) == 1:
        return best[0]
    if best:
        raise RecordError(f"{source}: {' and '.join(best)} fit equally well; name the one to use")
    raise _unknown(source, list(first_rows.values()))


def _first_row(rows: Rows, source: str, split: str | None) -> Row | RecordError:
    try:
        return next(rows(source, split), RecordError(f"{source}: no rows"))
    except RecordError as error:
        return error


def _matches(reader: Reader, row: Row | RecordError) -> bool:
    if isinstance(row, RecordError) or not (reader.columns or reader.matches):
        return False
    named = all(any(name in row.value for name in column.split("|")) for column in reader.columns)
    return named and (reader.matches is None or reader.matches(row))


def _specificity(reader: Reader) -> tuple[int, bool]:
    return len(reader.columns), reader.matches is not None


def _unknown(source: str, first_rows: list[Row | RecordError]) -> RecordError:
    errors = [row for row in first_rows if isinstance(row, RecordError)]
    opened = [row for row in first_rows if isinstance(row, Row)]
    if not opened and not Path(source).is_dir():
        return errors[0]
    reasons = "; ".join(dict.fromkeys(map(str, errors)))
    contents = (opened[0].broken or f"columns {', '.join(map(str, opened[0].value))}") if opened else reasons
    layouts = "".join(f"\n  {name}: {reader.about}" for name, reader in READERS.items())
    return RecordError(f"{source}: no known layout. Found {contents}. Known layouts:{layouts}")
