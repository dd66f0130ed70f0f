"""Rows of JSON and JSON Lines files, in the shapes that programs write them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from diffalign.core.documents import parse_json
from diffalign.core.errors import RecordError
from diffalign.data.readers.rows import RawRow
from diffalign.data.readers.text_lines import fault, text_lines


def json_line_rows(path: Path) -> Iterator[RawRow]:
    """Yield one row for each line that is not blank; a line that is not JSON is a broken row. A JSON list of rows is read as one."""
    for number, line in enumerate(text_lines(path), start=1):
        if not line.strip():
            continue
        if number == 1 and line.strip() == "[":
            yield from json_rows(path)
            return
        yield _row(line, number)


def _row(line: str, number: int) -> RawRow:
    place = f"line {number}"
    if problem := fault(line):
        return RawRow(None, place, problem)
    try:
        return RawRow(parse_json(line, "found a bad line", RecordError), place)
    except RecordError as error:
        return RawRow(None, place, f"{error}; expected an object with named columns")


def json_rows(path: Path) -> Iterator[RawRow]:
    """Yield the rows of a JSON list, of a table that pandas or the dataset viewer wrote as an object, or of lines of JSON.

    Raises RecordError for a file that is not JSON, or of another shape.
    """
    text = "".join(text_lines(path))
    if problem := fault(text):
        raise RecordError(f"{path}: {problem}")
    try:
        value = parse_json(text, f"{path}: cannot be read as .json", RecordError)
    except RecordError:
        if text.lstrip()[:1] == "{" and "\n" in text.strip():
            first = _row(text.lstrip().partition("\n")[0], 1)
            if isinstance(first.value, Mapping):  # JSON Lines under another name
                yield from json_line_rows(path)
                return
        raise
    rows = _table(value)
    if rows is None:
        raise RecordError(f"{path}: found a JSON {_kind(value)}; expected a list of rows")
    yield from (RawRow(row) for row in rows)


def _kind(value: Any) -> str:
    return f"object of {', '.join(map(str, list(value)[:5]))}" if isinstance(value, Mapping) and value else type(value).__name__


def _table(value: Any) -> list[Any] | None:
    """Return the rows in a JSON value, or None: a list, a list under one key, or columns as `DataFrame.to_json` writes them."""
    if isinstance(value, list):
        return value
    if not isinstance(value, Mapping):
        return None
    if isinstance(names := value.get("columns"), list) and isinstance(value.get("data"), list):  # to_json(orient="split")
        return [dict(zip(names, row, strict=False)) if isinstance(row, list) else row for row in value["data"]]
    lists = {key: part for key, part in value.items() if isinstance(part, list) and all(isinstance(row, Mapping) for row in part)}
    for key in ("data", "rows", *(lists if len(lists) == 1 else ())):
        if isinstance(rows := value.get(key), list):
            return [row["row"] if isinstance(row, Mapping) and isinstance(row.get("row"), Mapping) else row for row in rows]
    return _of_columns(value)


def _of_columns(value: Mapping[str, Any]) -> list[Any] | None:
    """Return the rows of {column: [value, ...]} or {column: {index: value}}, or None where the columns do not have the same rows."""
    columns = {name: dict(enumerate(part)) if isinstance(part, list) else part for name, part in value.items()}
    if not columns or not all(isinstance(column, Mapping) for column in columns.values()):
        return None
    keys = list(next(iter(columns.values())))
    if len(columns) < 2 or any(list(column) != keys for column in columns.values()):
        return None
    return [{name: column[key] for name, column in columns.items()} for key in keys]
