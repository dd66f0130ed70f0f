"""LLMBar: two outputs for an instruction, one of which follows it (2310.07641)."""

from __future__ import annotations

from diffalign.core.errors import RecordError
from diffalign.data.readers.base import Reader, Row
from diffalign.data.readers.sources import open_rows
from diffalign.data.records import Candidate, Record


def parse(row: Row) -> Record:
    """Return the pair in the file's order; `label` is the number of the better output."""
    label = row.number("label")
    if label not in (1.0, 2.0):
        raise RecordError(f"{row.where}: column `label` is {label:g}; expected 1 or 2")
    return Record(
        id=row.id,
        prompt=row.text("input"),
        candidates=tuple(Candidate(text=row.text(f"output_{side}")) for side in (1, 2)),
        prob=2.0 - label,
        source=row.where,
    )


LLMBAR = Reader(open_rows, parse, ("input", "output_1", "output_2", "label"), "LLMBar (input, output_1, output_2, label 1 or 2)")
