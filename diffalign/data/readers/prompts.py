"""Prompts without candidates, for methods that draw their own images and for evaluation.

They come one per line of a .txt file, from a JSON list of texts, or from a column of any other dataset.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from diffalign.core.errors import RecordError
from diffalign.data.readers.base import Reader, Row, open_rows
from diffalign.data.records import Record

LINE = "line of a text file"  # a column that only rows of text files and of JSON lists have
COLUMNS = ("prompt", "caption", "Prompt")  # the last is that of PartiPrompts
PEEK = 1024  # leading characters that are looked at to tell a list of texts from a list of rows


def rows(source: str, split: str | None) -> Iterator[Row]:
    """Yield the non-empty lines of a text file, the texts of a JSON list of texts, or the rows of any other source."""
    path = Path(source)
    if path.suffix == ".txt":
        texts, where = _lines(path), "line"
    elif path.suffix == ".json" and path.is_file() and _is_list_of_texts(path):
        texts, where = _json_texts(path), "row"
    else:
        yield from open_rows(source, split)
        return
    for number, text in texts:
        yield Row({"prompt": text, LINE: number}, f"{path.name} {where} {number}", f"{path.name}:{number}", path.parent)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    if not path.is_file():
        raise RecordError(f"{path}: there is no such file")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise RecordError(f"{path}: not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8") from error
    return ((number, line.strip()) for number, line in enumerate(lines, start=1) if line.strip())


def _is_list_of_texts(path: Path) -> bool:
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        return re.match(r'\s*\[\s*"', file.read(PEEK)) is not None


def _json_texts(path: Path) -> Iterator[tuple[int, Any]]:
    try:
        return enumerate(json.loads(path.read_text(encoding="utf-8-sig")))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise RecordError(f"{path}: cannot be read as .json ({error})") from error


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
