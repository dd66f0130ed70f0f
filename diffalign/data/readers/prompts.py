"""Prompts alone, for methods that make their own pictures: a .txt file with one a line, or any table with a prompt column."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from diffalign.data.readers.base import Reader, Row, open_rows
from diffalign.data.records import Record
from diffalign.errors import RecordError

LINE = "line of a text file"  # a column that only such rows have


def rows(source: str, split: str | None) -> Iterator[Row]:
    """Yield the lines of a text file that hold something, or the rows of any other source."""
    path = Path(source)
    if path.suffix != ".txt":
        yield from open_rows(source, split)
        return
    if not path.is_file():
        raise RecordError(f"{source}: there is no such file")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise RecordError(f"{source}: not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8") from error
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield Row({"prompt": line.strip(), LINE: number}, f"{path.name} line {number}", f"{path.name}:{number}", path.parent)


def parse(row: Row) -> Record:
    """Return the prompt, without candidates."""
    return Record(id=row.id, prompt=row.text("prompt", aliases=("caption",)), candidates=(), source=row.where)


PROMPTS = Reader(
    rows,
    parse,
    ("prompt|caption",),
    "prompts alone, one a line of a .txt file; name it for other files with a prompt column",
    matches=lambda row: LINE in row.value,
    candidates=False,
)
