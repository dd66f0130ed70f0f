"""Votes of `diffalign app`, in a SQLite file with its pictures beside it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from diffalign.core.errors import RecordError
from diffalign.data.readers.base import Reader, Row
from diffalign.data.records import Record
from diffalign.data.store import SUFFIXES, VoteStore

VOTE = "vote of a store"  # a column that only rows of vote stores have


def rows(source: str, split: str | None) -> Iterator[Row]:
    """Yield the votes of a store that count, each as its record. Raises RecordError for any other file, and for a split."""
    path = Path(source).expanduser()
    if path.suffix.lower() not in SUFFIXES or not path.is_file():
        raise RecordError(f"{source}: no vote store; expected a file that ends in {', '.join(SUFFIXES)}")
    if split is not None:
        raise RecordError(f"{source}: a vote store has no splits; found `{split}`")
    with VoteStore(path, read_only=True) as store:
        for record in store.records():
            yield Row({VOTE: record}, record.source, record.id)


def parse(row: Row) -> Record:
    """Return the record of a vote."""
    return row.value[VOTE]


VOTES = Reader(rows, parse, (VOTE,), "votes of `diffalign app` (votes.db with the folder votes.db.pictures)")
