"""The votes that are to be explained: pairs of things that somebody compared, of a table or of columns of a dataset file."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from diffalign.core.errors import ConfigError, TableError
from diffalign.data.duplicates import content_digest
from diffalign.data.readers.base import Row
from diffalign.data.records import Candidate, Record
from diffalign.data.shortcuts import origin_columns
from diffalign.data.table import Table
from diffalign.evaluate.judgements import prompts_in, require
from diffalign.evaluate.verdicts import SIGNS, verdict_of

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
ORIENTED = 0.95  # share of votes for one side from which the order says the label, as in columns chosen and rejected, and no place


class Compared(NamedTuple):
    """The thing shown first, the other, and the chance that the first is preferred."""

    first: int
    second: int
    prob: float


@dataclass(frozen=True, slots=True)
class Thing:
    """A candidate under its prompt: a picture, a text, or a row of numbers."""

    key: bytes  # equal for equal content
    row: int  # of the table
    place: int  # among the candidates of the row
    scores: Mapping[str, float]
    origin: Mapping[str, float | str]


@dataclass(frozen=True, slots=True)
class Votes:
    """Votes (P,) between two things each: `prob` is the chance that the first is preferred, one half a tie."""

    first: Ints
    second: Ints
    prob: Floats
    group: Ints  # numbers the prompts from 0
    prompts: tuple[str, ...]  # by number
    ids: tuple[str, ...]  # of the record; a ranking gives several votes
    users: tuple[str | None, ...]
    sources: tuple[str, ...]
    things: tuple[Thing, ...]
    table: Table | None = None
    unlabelled: int = 0

    def __len__(self) -> int:
        return len(self.prob)

    @property
    def decided(self) -> NDArray[np.bool_]:
        """Return which votes (P,) prefer one of the two."""
        return self.prob != 0.5

    @property
    def sign(self) -> Floats:
        """Return (P,): 1 where the first is preferred, -1 where the second is, 0 for a tie."""
        return np.sign(self.prob - 0.5)

    @property
    def oriented(self) -> bool:
        """Return whether the order of the two says the label, so that it says nothing of where they were shown."""
        share = float(np.mean(self.prob[self.decided] > 0.5)) if self.decided.any() else 0.5
        return not 1.0 - ORIENTED < share < ORIENTED

    def candidate(self, thing: int) -> Candidate:
        """Return the content of a thing, which a dataset file without contents does not have."""
        if self.table is None:
            return Candidate(text="")
        about = self.things[thing]
        return self.table[about.row].candidates[about.place]

    def difference(self, values: Floats) -> Floats:
        """Return (P, ...): the value of the first thing minus that of the second, for `values` (T, ...) of the things."""
        return values[self.first] - values[self.second]

    def relabelled(self, prob: Floats) -> Votes:
        """Return the same pairs with other labels; where `prob` is not a number there is no vote."""
        return self.only(np.isfinite(prob), prob)

    def only(self, kept: NDArray[np.bool_], prob: Floats | None = None) -> Votes:
        """Return some of the votes."""
        parts = {name: tuple(v for v, keep in zip(getattr(self, name), kept, strict=True) if keep) for name in ("ids", "users", "sources")}
        labels = self.prob if prob is None else prob
        numbers = (self.first[kept], self.second[kept], labels[kept], self.group[kept])
        return Votes(*numbers, self.prompts, **parts, things=self.things, table=self.table, unlabelled=self.unlabelled)


@dataclass(slots=True)
class _Collector:
    """Makes votes one after the other."""

    pairs: list[Compared] = field(default_factory=list)
    about: list[tuple[str, str, str | None, str]] = field(default_factory=list)  # prompt, id, user, source
    things: list[Thing] = field(default_factory=list)
    places: dict[tuple[str, bytes], int] = field(default_factory=dict)
    unlabelled: int = 0

    def thing(self, prompt: str, thing: Thing) -> int:
        """Return the number of a thing; equal content under one prompt is one thing."""
        place = self.places.setdefault((prompt, thing.key), len(self.things))
        if place == len(self.things):
            self.things.append(thing)
        return place

    def add(self, pair: Compared, prompt: str, name: str, user: str | None, source: str) -> None:
        """Take a vote; one between two equal things says nothing."""
        if pair.first != pair.second:
            self.pairs.append(pair)
            self.about.append((prompt, name, user, source))

    def votes(self, where: str, table: Table | None = None) -> Votes:
        """Return all votes. Raises TableError where there is none, or none but ties."""
        if not self.pairs:
            raise TableError(f"{where}: no vote between two different candidates; expected labels of pairs, or ranks")
        if all(pair.prob == 0.5 for pair in self.pairs):
            raise TableError(f"{where}: all {len(self.pairs)} votes are ties; expected some that prefer one of two candidates")
        prompts, ids, users, sources = zip(*self.about, strict=True)
        first, second, prob = (np.array(column) for column in zip(*self.pairs, strict=True))
        names, group = np.unique(np.array(prompts, dtype=object), return_inverse=True)
        numbers = (first.astype(np.int64), second.astype(np.int64), prob.astype(np.float64), group.astype(np.int64))
        return Votes(*numbers, tuple(map(str, names)), ids, users, sources, tuple(self.things), table, self.unlabelled)


def votes_of_table(table: Table, *, rows: int | None = None, seed: int = 0) -> Votes:
    """Return the votes of a table: of labelled pairs, and every pair of a ranking, equal ranks being ties.

    With `rows` those of so many random rows. Raises TableError where there is no vote.
    """
    chosen: Sequence[int] = range(len(table))
    if rows is not None and rows < len(table):
        chosen = sorted(np.random.default_rng(seed).choice(len(table), size=rows, replace=False).tolist())
    made = _Collector()
    for number in chosen:
        record = table[number]
        pairs = list(_compared(record))
        made.unlabelled += not pairs
        if not pairs:
            continue
        origin = origin_columns(record, pixels=True) or [{} for _ in record.candidates]
        things = [
            made.thing(record.prompt, Thing(content_digest(c), number, place, c.scores, origin[place]))
            for place, c in enumerate(record.candidates)
        ]
        for first, second, prob in pairs:
            made.add(Compared(things[first], things[second], prob), record.prompt, record.id, record.user, source_of(record))
    return made.votes(table.name, table)


def _compared(record: Record) -> Iterator[Compared]:
    """Yield the pairs of a record's candidates that are compared."""
    if len(record.candidates) == 2 and record.prob is not None:
        yield Compared(0, 1, record.prob)
        return
    ranked = [(place, c.rank) for place, c in enumerate(record.candidates) if c.rank is not None]
    for (first, one), (second, other) in combinations(ranked, 2):
        yield Compared(first, second, 0.5 * (1.0 + float(np.sign(other - one))))


def source_of(record: Record) -> str:
    """Return where a record comes from: its column `source`, else the name of its file.

    >>> source_of(Record("7", "a star", (), source="data/votes.csv row 7"))
    'votes.csv'
    """
    if "source" in record.meta:
        return record.meta["source"]
    file = re.split(r",? (?:row|line|item|and|to) |[:,]", record.source, maxsplit=1)[0]
    return Path(file).name or "unnamed"


def votes_of_rows(
    rows: Sequence[Row],
    *,
    scores: Sequence[str] = (),
    origin: Sequence[str] = (),
    human: str | None = None,
    votes: str | None = None,
    prompt: str | None = None,
) -> Votes:
    """Return the votes in columns of a dataset file, without the things themselves.

    Args:
        rows: of the file.
        scores: columns of numbers that may explain the votes. Of votes on two things NAME stands for NAME_0 and NAME_1.
        origin: columns that say where a thing comes from, in the same form.
        human: column of ratings of single things, larger is better: every two things of a prompt are a vote.
        votes: instead, a column of votes (left, right, tie, ...) on two things a row.
        prompt: column that tells prompts apart.

    Raises ConfigError for a column that is not there, RecordError for a vote in unknown words.
    """
    if (human is None) == (votes is None):
        raise ConfigError(
            f"{rows[0].where}: name what people think, with --human (a column of ratings) or with --votes (a column of votes)"
        )
    made = _Collector()
    names = prompts_in(rows, prompt)
    if human is not None:
        require(rows, [human, *scores, *origin])
        _rated(made, rows, names, human, scores, origin)
    else:
        require(rows, [str(votes), *(f"{name}_{side}" for name in (*scores, *origin) for side in (0, 1))])
        _voted(made, rows, names, str(votes), scores, origin)
    return made.votes(rows[0].where)


def _rated(made: _Collector, rows: Sequence[Row], names: Sequence[str], human: str, scores: Sequence[str], origin: Sequence[str]) -> None:
    members: dict[str, list[tuple[int, float, Row]]] = {}
    for number, (row, name) in enumerate(zip(rows, names, strict=True)):
        if row.optional(human) is None:
            made.unlabelled += 1
            continue
        place = made.thing(name, _thing(row, number, 0, {s: s for s in scores}, {o: o for o in origin}))
        members.setdefault(name, []).append((place, row.number(human), row))
    for name, things in members.items():
        for (first, one, row), (second, other, _) in combinations(things, 2):
            made.add(Compared(first, second, 0.5 * (1.0 + float(np.sign(one - other)))), name, row.id, row.user(), "")


def _voted(made: _Collector, rows: Sequence[Row], names: Sequence[str], votes: str, scores: Sequence[str], origin: Sequence[str]) -> None:
    for number, (row, name) in enumerate(zip(rows, names, strict=True)):
        verdict = verdict_of(row, votes)
        if verdict is None:
            made.unlabelled += 1
            continue
        first, second = (
            made.thing(name, _thing(row, number, side, {s: f"{s}_{side}" for s in scores}, {o: f"{o}_{side}" for o in origin}))
            for side in (0, 1)
        )
        made.add(Compared(first, second, 0.5 * (1.0 + SIGNS.get(verdict, 0.0))), name, row.id, row.user(), "")


def _thing(row: Row, number: int, side: int, scores: Mapping[str, str], origin: Mapping[str, str]) -> Thing:
    numbers = {name: row.number(column) for name, column in scores.items() if row.optional(column) not in (None, "")}
    come = {name: str(row.get(column)) for name, column in origin.items()}
    return Thing(f"{number}/{side}".encode(), number, side, numbers, come)
