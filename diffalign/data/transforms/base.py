"""What transforms share: swapping a pair, flipping its label, checking that it is a labelled pair, reading a candidate's score."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from diffalign.core.errors import RecordError
from diffalign.data.records import Candidate, Record

Transform = Callable[[Record], tuple[Record, ...]]


def swapped(record: Record) -> Record:
    """Return the pair with its candidates exchanged and label and offset flipped, so that the same candidate stays preferred."""
    first, second = record.candidates
    return replace(flipped(record), candidates=(second, first))


def flipped(record: Record) -> Record:
    """Return the record with the opposite preference: `prob` becomes 1 - prob and the offset its negative; the candidates stay in place."""
    prob, offset = (None if record.prob is None else 1.0 - record.prob), (None if record.offset is None else -record.offset)
    return replace(record, prob=prob, offset=offset)


def require_oriented(record: Record, transform: str) -> Record:
    """Return `record` unchanged. Raises RecordError that names the transform if the first candidate is not the preferred one."""
    if record.prob is not None and record.prob < 0.5:
        raise RecordError(
            f"{record.source}: `{transform}` takes the first candidate as the preferred one, and prob is {record.prob:g}; "
            "put `orient` before it"
        )
    return record


def labelled_pair(record: Record) -> tuple[Record, float]:
    """Return `record` unchanged and its label. Raises RecordError if it is not a labelled pair."""
    if len(record.candidates) != 2 or record.prob is None:
        contents = f"{len(record.candidates)} candidates and {'no label' if record.prob is None else 'a label'}"
        raise RecordError(f"{record.source}: expected a labelled pair, found {contents}; put `pairs` before this transform")
    return record, record.prob


def score_of(record: Record, candidate: Candidate, name: str) -> float:
    """Return a candidate's score `name`. Raises RecordError if it has none of that name."""
    if name not in candidate.scores:
        raise RecordError(f"{record.source}: no score `{name}`; this record has {sorted(candidate.scores) or 'none'}")
    return candidate.scores[name]


def gap(record: Record, score: str) -> float:
    """Return by how much candidate 0 of a pair scores above candidate 1. Raises RecordError unless both have the score."""
    if len(record.candidates) != 2:
        raise RecordError(f"{record.source}: expected two candidates, found {len(record.candidates)}; put `pairs` before this transform")
    first, second = (score_of(record, candidate, score) for candidate in record.candidates)
    return first - second
