"""Looking through a table or a vote store: records are found by cheap facts, and only those of one sheet are read with their pictures."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from diffalign.data.questions import RANKING
from diffalign.data.records import Candidate, Record
from diffalign.data.store import VoteStore
from diffalign.data.table import Table

UNLABELLED = "unlabelled"


@dataclass(frozen=True, slots=True)
class Entry:
    """What there is to find a record by."""

    id: str
    position: int  # in the table; 0 in a vote store
    prompt: str
    user: str | None
    label: str  # left or right, where the first or second candidate is preferred; tie, both_bad, skip, ranking or unlabelled
    models: tuple[str, ...] = ()
    scores: tuple[Mapping[str, float], ...] = ()  # of each candidate
    at: float | None = None  # when it was voted, seconds since 1970


@dataclass(frozen=True, slots=True)
class Filter:
    """Which records to look at; what is None or empty lets all pass."""

    user: str | None = None
    label: str | None = None
    model: str | None = None
    prompt: str = ""  # part of it, in whatever case
    score: str | None = None
    low: float | None = None  # a candidate's score lies in [low, high]
    high: float | None = None

    def passes(self, entry: Entry) -> bool:
        """Return whether a record is one of those to look at.

        >>> star = Entry("0", 0, "A red star", "ada", "left", scores=({"taste": 0.2}, {"taste": 0.9}))
        >>> Filter(prompt="STAR", score="taste", low=0.5).passes(star), Filter(score="taste", low=0.95).passes(star)
        (True, False)
        """
        pairs = ((self.user, entry.user), (self.label, entry.label))
        if any(wanted is not None and wanted != value for wanted, value in pairs):
            return False
        if self.model is not None and self.model not in entry.models:
            return False
        return self.prompt.lower() in entry.prompt.lower() and self._scored(entry)

    def _scored(self, entry: Entry) -> bool:
        if self.score is None:
            return True
        low, high = -math.inf if self.low is None else self.low, math.inf if self.high is None else self.high
        return any(low <= scores[self.score] <= high for scores in entry.scores if self.score in scores)


class Rows(Protocol):
    """What is looked through."""

    def entries(self) -> Iterator[Entry]:
        """Yield what there is to find each record by."""
        ...

    def record(self, entry: Entry) -> Record:
        """Return a record with its pictures."""
        ...


@dataclass(frozen=True, slots=True)
class TableRows:
    """The rows of a table, in its order."""

    table: Table

    def entries(self) -> Iterator[Entry]:
        """Yield the rows; their pictures stay on the disk."""
        position = 0
        for batch in self.table.batches():
            column = batch.column("candidates")
            content = column.flatten()
            parts = [iter(content.field(field).to_pylist()) for field in ("model", "scores", "rank")]
            columns = [batch.column(field).to_pylist() for field in ("id", "prompt", "user", "prob")]
            for name, prompt, user, prob, count in zip(*columns, column.value_lengths().to_pylist(), strict=True):
                models, scores, ranks = (list(itertools.islice(part, count)) for part in parts)
                drawn_by = tuple(dict.fromkeys(model for model in models if model))
                yield Entry(name, position, prompt, user, _label(prob, ranks), drawn_by, tuple(dict(score or ()) for score in scores))
                position += 1

    def record(self, entry: Entry) -> Record:
        """Return a row with its pictures."""
        return self.table[entry.position]


@dataclass(frozen=True, slots=True)
class VoteRows:
    """The votes of a store that count, the newest first."""

    store: VoteStore

    def entries(self) -> Iterator[Entry]:
        """Yield the votes."""
        for vote in reversed(self.store.votes()):
            question = self.store.question(vote.question)
            models = tuple(dict.fromkeys(picture.model for picture in question.pictures if picture.model))
            yield Entry(question.id, 0, question.prompt, question.user, vote.answer, models, at=vote.at)

    def record(self, entry: Entry) -> Record:
        """Return the pictures of a vote, in the order in which they were shown."""
        pictures = self.store.question(entry.id).pictures
        candidates = tuple(Candidate(image=picture.file.read_bytes(), model=picture.model or None) for picture in pictures)
        return Record(entry.id, entry.prompt, candidates, user=entry.user, source=f"vote {entry.id}")


def sheet(entries: Iterable[Entry], wanted: Filter, number: int, rows: int) -> tuple[list[Entry], int]:
    """Return sheet `number`, counted from 1, of the records that are wanted, with so many rows; and how many records are wanted in all."""
    first, shown, total = (number - 1) * rows, [], 0
    for entry in entries:
        if wanted.passes(entry):
            if first <= total < first + rows:
                shown.append(entry)
            total += 1
    return shown, total


def _label(prob: float | None, ranks: Sequence[float | None]) -> str:
    if prob is None:
        return RANKING if any(rank is not None for rank in ranks) else UNLABELLED
    return "tie" if prob == 0.5 else "left" if prob > 0.5 else "right"
