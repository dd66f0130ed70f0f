"""Prompts without candidates, for methods that draw their own images and for evaluation.

They come one per line of a .txt file, from a JSON list of texts, or from a column of any other dataset.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from diffalign.core.documents import parse_json
from diffalign.core.errors import RecordError
from diffalign.data.readers.base import Reader, Row
from diffalign.data.readers.sources import kind_of, local_path, open_rows
from diffalign.data.readers.text_lines import fault, text_lines
from diffalign.data.records import Record

LINE = "line of a text file"  # a column that only rows of text files and of JSON lists have
COLUMNS = ("prompt", "caption", "Prompt")  # the last is that of PartiPrompts
LISTS = (".txt", ".txt.gz")  # a prompt a line
PEEK = 1024  # leading characters that are looked at to tell a list of texts from a list of rows


def rows(source: str, split: str | None) -> Iterator[Row]:
    """Yield the non-empty lines of a text file, the texts of a JSON list of texts, or the rows of any other source."""
    path = local_path(source)
    kind = kind_of(path)
    if kind in LISTS:
        if not path.is_file():
            raise RecordError(f"{path}: there is no such file")
        yield from _lines(path)
    elif kind == ".json" and path.is_file() and (texts := _texts(path)) is not None:
        yield from (_row(path, "row", number, text) for number, text in enumerate(texts))
    else:
        yield from open_rows(source, split)


def _row(path: Path, unit: str, number: int, text: Any, broken: str = "") -> Row:
    where = f"{path.name} {unit} {number}"
    return Row({"prompt": text, LINE: number}, where, f"{path.name}:{number}", path.parent, broken and f"{where}: {broken}")


def _lines(path: Path) -> Iterator[Row]:
    for number, line in enumerate(text_lines(path), start=1):
        if text := line.strip("\ufeff").strip():
            yield _row(path, "line", number, text, fault(text))


def _texts(path: Path) -> list[Any] | None:
    """Return what a JSON file lists that begins with a text, or None for any other JSON file."""
    beginning = "".join(itertools.islice(text_lines(path), 9))[:PEEK]
    if not re.match(r'\s*\[\s*"', beginning):
        return None
    return parse_json("".join(text_lines(path)), f"{path}: cannot be read as .json", RecordError)


def parse(row: Row) -> Record:
    """Return the prompt, without candidates."""
    name, *aliases = COLUMNS
    return Record(id=row.id, prompt=row.text(name, aliases=tuple(aliases)), candidates=(), source=row.where)


PROMPTS = Reader(
    rows,
    parse,
    ("|".join(COLUMNS),),
    "prompts alone, one per line of a .txt file or in a JSON list; for a prompt column of other files, name this reader",
    matches=lambda row: LINE in row.value,
    candidates=False,
)


def of_column(name: str | None) -> Reader:
    """Return the reader of prompts that takes them from another column of a table; a list of prompts has no columns."""

    def parse_column(row: Row) -> Record:
        return parse(row) if name is None or LINE in row.value else Record(row.id, row.text(name), (), source=row.where)

    return replace(PROMPTS, parse=parse_column)
