"""Preference tables of texts, made in the test, and the ids they become."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from diffalign.data.readers import READERS, read
from diffalign.data.records import Candidate, Message, Record
from diffalign.data.table import write_table
from diffalign.data.view import View
from diffalign.models.text.template import Encoded
from tests.models.text.models import PAIRS


def real_records() -> list[Record]:
    """Return the 32 real pairs, texts first, as the reader `trl` gives them."""
    return list(read(READERS["trl"], str(PAIRS)))


def text_record(prompt: str, *texts: str, number: int = 0, **fields) -> Record:
    """Return a record of texts without a conversation; the first is preferred."""
    candidates = fields.pop("candidates", tuple(Candidate(text=text) for text in texts))
    prob = fields.pop("prob", 1.0 if len(candidates) > 1 else None)
    return Record(str(number), prompt, candidates, prob, source=f"rows.jsonl row {number}", **fields)


def chat_record(turns: Sequence[tuple[str, str]], *texts: str, **fields) -> Record:
    """Return the record of a conversation given as (role, content)."""
    return text_record(turns[-1][1], *texts, messages=tuple(Message(*turn) for turn in turns), **fields)


def view_of(folder: Path, records: Sequence[Record]) -> View:
    """Return a view on a new table of `records`."""
    return View(write_table(folder / "table", list(records)), [])


def encoded(prompt: Sequence[int], *completions: Sequence[int]) -> Encoded:
    """Return a record of ids whose candidates share their prompt."""
    arrays = tuple(np.asarray(ids, np.int32) for ids in completions)
    return Encoded((np.asarray(prompt, np.int32),), (0,) * len(arrays), arrays)


def lists(record: Encoded) -> tuple[list[list[int]], list[list[int]]]:
    """Return the prompts and the completions of every candidate as lists."""
    return [record.prompts[i].tolist() for i in record.answers], [ids.tolist() for ids in record.completions]
