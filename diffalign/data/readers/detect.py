"""Which reader a source is for, from its first row."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from diffalign.core.errors import RecordError
from diffalign.data.readers import READERS
from diffalign.data.readers.base import Reader, Row

Rows = Callable[[str, str | None], Iterator[Row]]


def detect(source: str, split: str | None = None) -> str:
    """Return the name of the reader whose columns the first row has; the one with the most, if they are several.

    Raises RecordError that lists the columns found and the layouts known, or why the source does not open.
    """
    first: dict[Rows, Row | RecordError] = {}
    for reader in READERS.values():
        if reader.rows not in first:
            first[reader.rows] = _first(reader.rows, source, split)
    fits = {name: _specificity(reader) for name, reader in READERS.items() if _matches(reader, first[reader.rows])}
    best = [name for name, specificity in fits.items() if specificity == max(fits.values())]
    if len(best) == 1:
        return best[0]
    if best:
        raise RecordError(f"{source}: {' and '.join(best)} fit equally well; name the one to use")
    raise _unknown(source, list(first.values()))


def _first(rows: Rows, source: str, split: str | None) -> Row | RecordError:
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


def _unknown(source: str, first: list[Row | RecordError]) -> RecordError:
    errors = [found for found in first if isinstance(found, RecordError)]
    opened = [found for found in first if isinstance(found, Row)]
    if not opened and not Path(source).is_dir():
        return errors[0]
    reasons = "; ".join(dict.fromkeys(map(str, errors)))
    found = (opened[0].broken or f"columns {', '.join(map(str, opened[0].value))}") if opened else reasons
    known = "".join(f"\n  {name}: {reader.about}" for name, reader in READERS.items())
    return RecordError(f"{source}: no known layout. Found {found}. Known layouts:{known}")
