"""Label Studio's JSON export of comparisons: tasks with their annotations, of which each is a vote of its annotator.

Its CSV and JSON-MIN exports are tables of the layout `columns`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from diffalign.data.readers.base import Reader, Row
from diffalign.data.readers.columns import parse, sides_of
from diffalign.data.readers.rows import Columns
from diffalign.data.readers.sources import open_rows

TASK = "label studio task"  # a column that only rows of tasks have


def rows(source: str, split: str | None) -> Iterator[Row]:
    """Yield one row for each annotation of a task; rows of any other table as they are."""
    for row in open_rows(source, split):
        data, annotations = row.value.get("data"), row.value.get("annotations")
        if not isinstance(data, Mapping) or not isinstance(annotations, list):
            yield row
            continue
        if not annotations:
            yield _vote(row, data, {}, 0)
        for number, annotation in enumerate(annotations):
            yield _vote(row, data, annotation if isinstance(annotation, Mapping) else {}, number)


def _vote(row: Row, data: Mapping[str, Any], annotation: Mapping[str, Any], number: int) -> Row:
    where, by = f"{row.where}, annotation {number}", annotation.get("completed_by")
    results = annotation.get("result")
    selected = [value for result in (results if isinstance(results, list) else ()) if (value := _selected(result)) is not None]
    broken = ""
    if len(selected) != 1 or annotation.get("was_cancelled"):
        broken = f"{where}: found {'a skipped task' if annotation.get('was_cancelled') else f'{len(selected)} choices'}; expected one"
    user = by.get("email", by.get("id")) if isinstance(by, Mapping) else by
    value = {**data, TASK: True, "comparison": selected[0] if selected else None, "user_id": user}
    return Row(Columns(value), where, f"{row.id}/{number}", row.folder, broken)


def _selected(result: Any) -> Any:
    """Return what a result of a comparison or of choices has selected, or None for any other result."""
    value = result.get("value") if isinstance(result, Mapping) else None
    if not isinstance(value, Mapping):
        return None
    choices = value.get("choices")
    return value.get("selected", choices[0] if isinstance(choices, list) and choices else None)


LABEL_STUDIO = Reader(
    rows,
    parse,
    (TASK,),
    "Label Studio's JSON export of comparisons of two (data with image1 and image2, annotations)",
    lambda row: sides_of(row) is not None,
)
