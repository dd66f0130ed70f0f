"""What all readers share: rows, whose columns are read with errors that name them, and turning rows into records one by one.

A reader is two functions: `rows(path)` yields `Row`s, and `parse(row)` turns one into a record or raises RecordError. `read` joins
them: the error of a bad row names its file and number, and a bad row can be skipped and listed while the rows after it are still read.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from diffalign.core.errors import RecordError, did_you_mean
from diffalign.data.readers.row_images import encoded_image, shown
from diffalign.data.records import Record, check_images

MISSING = ("", None)  # CSV has no null
CONDITIONING = ("conditioning_image", "condition", "condition_image")  # the first as in the datasets of diffusers' ControlNet script


@dataclass(frozen=True, slots=True)
class Row:
    """One raw row: its columns, its place ('votes.csv row 3'), and the folder that relative paths in it start from."""

    value: Mapping[str, Any]
    where: str
    id: str  # short and unique in the dataset: 'votes.csv:3'
    folder: Path = Path()
    broken: str = ""  # why the row cannot be read at all; raised when a column is read, so that `read` can skip the row
    line: str = ""  # where it stands in a text file: 'line 5'

    def get(self, name: str, kind: type | tuple[type, ...] = object, *, aliases: tuple[str, ...] = ()) -> Any:
        """Return column `name` (or the first alias present). Raises RecordError if it is missing, null or of another type."""
        if self.broken:
            raise RecordError(self.broken)
        for key in (name, *aliases):
            if key in self.value:
                return self._checked(key, kind)
        raise RecordError(f"{self.where}: no column `{name}`.{did_you_mean(name, map(str, self.value))}")

    def _checked(self, key: str, kind: type | tuple[type, ...]) -> Any:
        value = self.value[key]
        kinds = kind if isinstance(kind, tuple) else (kind,)
        if float in kinds:
            kinds += (int, Decimal)
        if value is None or not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds and kind is not object):
            expected = " or ".join(k.__name__ for k in kinds if k is not Decimal)
            raise RecordError(f"{self.where}: column `{key}` is {shown(value)}; expected {expected}")
        return value

    def text(self, name: str, *, aliases: tuple[str, ...] = ()) -> str:
        """Return a text column."""
        return self.get(name, str, aliases=aliases)

    def number(self, name: str, *, aliases: tuple[str, ...] = ()) -> float:
        """Return a number; CSV text is parsed, with a point or a comma before the decimals."""
        return self._number(self.get(name, (float, str), aliases=aliases), name)

    def numbers(self, name: str, length: int) -> list[float]:
        """Return a list column of exactly `length` numbers."""
        values = self.get(name, list)
        if len(values) != length:
            raise RecordError(f"{self.where}: column `{name}` has {len(values)} entries; expected {length}, one an image")
        return [self._number(value, name) for value in values]

    def _number(self, value: Any, name: str) -> float:
        if isinstance(value, str) and re.fullmatch(r"\s*[-+]?\d+,\d+\s*", value):
            value = value.replace(",", ".")
        try:
            return float(value)
        except (TypeError, ValueError, OverflowError) as error:
            raise RecordError(f"{self.where}: column `{name}` holds {shown(value)}; expected a number") from error

    def optional(self, name: str, *, aliases: tuple[str, ...] = ()) -> str | None:
        """Return a column as text, or None where it is missing, null or empty. A whole number has no decimals, as in `7.0`.

        pandas turns whole numbers into floats where a column has gaps.
        """
        value = next((self.value[key] for key in (name, *aliases) if key in self.value and self.value[key] not in MISSING), None)
        if isinstance(value, float | Decimal) and value == value // 1:
            return str(int(value))
        return None if value is None or (isinstance(value, float) and math.isnan(value)) else str(value)

    def user(self, name: str = "user_id", *, aliases: tuple[str, ...] = ("user",)) -> str | None:
        """Return who voted, or None; `7`, `7.0` and the text `7.0` are one user."""
        user = self.optional(name, aliases=aliases)
        return None if user is None or not user.strip() else re.sub(r"^(\d+)\.0+$", r"\1", user.strip())

    def image(self, name: str, *, aliases: tuple[str, ...] = ()) -> bytes:
        """Return an image column as encoded bytes: raw bytes, the datasets struct {bytes, path}, or a path beside the file."""
        return self.encoded(self.get(name, (bytes, dict, str, list), aliases=aliases), name)

    def conditioning_image(self, *ends: str) -> bytes | None:
        """Return the image that a ControlNet reads, from the column `conditioning_image` or `condition`; None where it is empty or missing.

        With `ends` it is the column of one candidate, whose name ends in one of these: `conditioning_image_0`.
        """
        names = [f"{stem}{end}" for end in ends or ("",) for stem in CONDITIONING]
        name = next((name for name in names if name in self.value and self.value[name] not in MISSING), None)
        return None if name is None else self.image(name)

    def encoded(self, value: Any, name: str, *, under: Sequence[str] = (".",)) -> bytes:
        """Return one value of column `name` as encoded image bytes; a path is looked for in each subfolder `under` in turn."""
        return encoded_image(value, f"{self.where}: column `{name}`", self.folder, under)


@dataclass(frozen=True, slots=True)
class Reader:
    """One dataset layout: how its rows are opened, how a row becomes a record, and by what the layout is recognised."""

    rows: Callable[[Any, str | None], Iterator[Row]]  # (path, hub id or, where it is `open_rows`, a dataset of `datasets`; split)
    parse: Callable[[Row], Record]
    columns: tuple[str, ...] = ()  # which a row must have for the layout to be detected; "a|b" means either
    about: str = ""  # one line for the list of layouts
    matches: Callable[[Row], bool] | None = None  # a look at a row's values, where column names alone do not tell layouts apart
    candidates: bool = True  # whether a record without candidates is an error


def read(
    reader: Reader, source: str, *, split: str | None = None, rejected: list[dict[str, str]] | None = None, verify_images: bool = True
) -> Iterator[Record]:
    """Yield the records of `source`. A bad row raises RecordError, or with a list `rejected` is appended to it as {where, reason}."""
    return parse_rows(reader, reader.rows(source, split), rejected, verify_images=verify_images)


def parse_rows(
    reader: Reader, rows: Iterable[Row], rejected: list[dict[str, str]] | None = None, *, verify_images: bool = True
) -> Iterator[Record]:
    """Yield the records of rows of a reader's layout; bad rows as in `read`."""
    for row in rows:
        try:
            record = reader.parse(row).check()
            if reader.candidates and not record.candidates:
                raise RecordError(f"{record.source}: no candidates; expected at least one image or text")
            yield check_images(record) if verify_images else record
        except RecordError as error:
            reason = f"{error} ({row.line})" if row.line else str(error)
            if rejected is None:
                raise RecordError(reason) from error
            rejected.append({"where": row.where, "reason": reason})
