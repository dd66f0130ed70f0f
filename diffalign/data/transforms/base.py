"""What transforms share: a pair turned round, a record known to be a labelled pair, a candidate's named score."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from diffalign.core.errors import RecordError
from diffalign.data.records import Candidate, Record

Transform = Callable[[Record], tuple[Record, ...]]


def swapped(record: Record) -> Record:
    """Return the pair with its candidates exchanged, and what is said of the first with them: the label, and the lead asked of it."""
    first, second = record.candidates
    return replace(turned(record), candidates=(second, first))


def turned(record: Record) -> Record:
    """Return the record with the opposite preference: the label and the offset turned round, the candidates as they are."""
    prob, offset = (None if record.prob is None else 1.0 - record.prob), (None if record.offset is None else -record.offset)
    return replace(record, prob=prob, offset=offset)


def oriented(record: Record, name: str) -> Record:
    """Return `record`. Raises RecordError if its first candidate is not the preferred one, which the transform `name` takes it for."""
    if record.prob is not None and record.prob < 0.5:
        raise RecordError(
            f"{record.source}: `{name}` takes the first candidate for the preferred one, and prob is {record.prob:g}; "
            "put `orient` before it"
        )
    return record


def labelled(record: Record) -> tuple[Record, float]:
    """Return `record` and its label. Raises RecordError if it is not a labelled pair."""
    if len(record.candidates) != 2 or record.prob is None:
        found = f"{len(record.candidates)} candidates and {'no label' if record.prob is None else 'a label'}"
        raise RecordError(f"{record.source}: expected a labelled pair, found {found}; put `pairs` before this transform")
    return record, record.prob


def two(record: Record) -> tuple[Candidate, Candidate]:
    """Return the candidates of a pair. Raises RecordError for any other number."""
    if len(record.candidates) != 2:
        raise RecordError(f"{record.source}: expected two candidates, found {len(record.candidates)}; put `pairs` before this transform")
    first, second = record.candidates
    return first, second


def score_of(record: Record, candidate: Candidate, name: str) -> float:
    """Return a candidate's score. Raises RecordError where it has none of that name."""
    if name not in candidate.scores:
        raise RecordError(f"{record.source}: no score `{name}`; this record has {sorted(candidate.scores) or 'none'}")
    return candidate.scores[name]


def gap(record: Record, score: str) -> float:
    """Return by how much candidate 0 of a pair scores above candidate 1."""
    first, second = (score_of(record, candidate, score) for candidate in two(record))
    return first - second
