"""Why one answer was preferred, as one candidate more: the last, a text that answers a question about the other two."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute

from diffalign.core.errors import RecordError, TableError
from diffalign.data.records import Candidate, Record
from diffalign.data.table import Table

compute: Any = pyarrow.compute  # whose functions are made at import, which type checkers do not see
COLUMN = "rationale"
# The wording is ours. As released (2407.14477) the preferred answer stands first, and the rationale is asked for last.
QUESTION = "{prompt}\n\nThe preferred answer:\n{preferred}\n\nThe other answer:\n{dispreferred}\n\nWhy is the first one preferred?\n"


def explained(record: Record) -> Record:
    """Return the pair with its rationale as candidate 2; without one, the preferred answer stands there once more, and does not count.

    Of a conversation the question takes the place of the last turn. Raises RecordError for a record that is no labelled pair.
    """
    if len(record.candidates) != 2 or record.prob is None:
        raise RecordError(
            f"{record.source}: {len(record.candidates)} candidates; `rationale_weight` trains on why one of two was preferred: put `pairs` "
            "among the transforms"
        )
    first, second = record.candidates if record.prob >= 0.5 else record.candidates[::-1]
    if COLUMN not in record.meta:
        return replace(record, candidates=(*record.candidates, first))
    question = QUESTION.format(prompt=record.prompt, preferred=first.text, dispreferred=second.text)
    return replace(record, candidates=(*record.candidates, Candidate(text=record.meta[COLUMN], prompt=question)))


def have_rationales(table: Table) -> np.ndarray:
    """Return which rows (R,) bool of a table say why one candidate was preferred. Raises TableError where none does."""
    values = compute.map_lookup(table.scattered("meta"), pa.scalar(COLUMN), "first")
    there = compute.greater(compute.fill_null(compute.utf8_length(compute.utf8_trim_whitespace(values)), 0), 0).to_numpy()
    if not there.any():
        raise TableError(
            f"{table.path}: none of {len(table)} records says why one answer was preferred, and `rationale_weight` trains on that; the "
            f"dataset needs a column `{COLUMN}`"
        )
    return there
