"""A table after transforms: records are filtered, reordered or expanded without copying, or even reading, an image."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import pyarrow as pa

from diffalign.core.errors import RecordError, TableError, did_you_mean
from diffalign.data.records import Message, Record
from diffalign.data.table import CONDITIONING, Table, from_row
from diffalign.data.transforms import Transform, transformed
from diffalign.data.usage import Usage

logger = logging.getLogger(__name__)

NO_COLUMNS: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Entry:
    """A transformed record without the content of its candidates, and where it comes from: the table row and the candidates' order."""

    row: int
    order: tuple[int, ...]  # the record's candidates, as positions among those of the row
    id: str
    prompt: str
    prob: float
    user: str | None = None
    messages: tuple[Message, ...] = ()
    weight: float | None = None
    offset: float | None = None
    columns: tuple[tuple[float, ...], ...] = ()  # for each column of the view, the candidates' numbers in `order`


class View(Sequence[Record]):
    """The first `limit` rows of `table` (all if None) after `transforms`; images are read when a record is indexed.

    `columns`, {column: score}, names the candidates' scores that an objective reads. Raises TableError if a candidate lacks one.
    """

    def __init__(
        self, table: Table, transforms: Sequence[Transform], limit: int | None = None, columns: Mapping[str, str] = NO_COLUMNS
    ) -> None:
        self.table, self.columns = table, tuple(columns)
        self.entries: list[Entry] = []
        self.usage = Usage()
        for row, light in enumerate(itertools.islice(without_content(table), limit)):
            made, dropped_by = transformed(weighted_by_table(light), transforms)
            self.entries += (_entry(table, row, record, columns) for record in made)
            self.usage.add(light, made, dropped_by)

    def keep(self, entries: list[Entry], reason: str) -> None:
        """Go on with some of the entries; table records of which none is left are counted under `reason`."""
        rows, left = {entry.row for entry in self.entries}, {entry.row for entry in entries}
        self.usage.leave_out(len(rows - left), reason)
        self.entries = entries

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        entry = self.entries[index]
        whole = self.table[entry.row]
        changes = {name: getattr(entry, name) for name in ("id", "prompt", "prob", "messages", "weight", "offset")}
        return replace(whole, candidates=tuple(whole.candidates[i] for i in entry.order), **changes)


def without_content(table: Table) -> Iterator[Record]:
    """Yield the table's records with every image and text replaced by its position among the candidates, as bytes."""
    for batch in table.batches():
        lists = batch.column("candidates")
        values = lists.values
        nulls = {"image": pa.nulls(len(values), pa.large_binary()), "text": pa.nulls(len(values), pa.large_string())}
        nulls |= {CONDITIONING: nulls["image"]}
        names = [field.name for field in values.type]
        light = pa.StructArray.from_arrays([nulls.get(n, values.field(n)) for n in names], fields=list(values.type))
        rows = batch.set_column(batch.schema.get_field_index("candidates"), "candidates", pa.ListArray.from_arrays(lists.offsets, light))
        rows = rows.drop_columns([CONDITIONING]) if CONDITIONING in rows.schema.names else rows
        for row in rows.to_pylist():
            record = from_row(row)
            yield replace(record, candidates=tuple(replace(c, image=b"%d" % i) for i, c in enumerate(record.candidates)))


def weighted_by_table(record: Record) -> Record:
    """Return the record with the weight of the table's column `weight`, if there is one. Raises RecordError for one that is no weight."""
    if "weight" not in record.meta:
        return record
    weight = float(record.meta["weight"])
    if not (math.isfinite(weight) and weight >= 0.0):
        raise RecordError(f"{record.source}: the column `weight` is {weight}; expected a finite number, zero or more")
    return replace(record, weight=weight)


def _entry(table: Table, row: int, record: Record, columns: Mapping[str, str]) -> Entry:
    order = tuple(int(c.image or b"") for c in record.candidates)
    if record.prob is None and len(order) > 1:
        raise RecordError(f"{record.source}: {len(order)} candidates and no label; put `pairs` among the transforms")
    prob = 1.0 if record.prob is None else record.prob
    numbers = tuple(_column(table, record, *pair) for pair in columns.items())
    return Entry(row, order, record.id, record.prompt, prob, record.user, record.messages, record.weight, record.offset, numbers)


def _column(table: Table, record: Record, column: str, score: str) -> tuple[float, ...]:
    for candidate in record.candidates:
        if score not in candidate.scores:
            names = sorted({*table.manifest["scores"], *candidate.scores})
            hint = f".{did_you_mean(score, names)} Name the score to read as `scores: {{{column}: NAME}}`"
            raise TableError(
                f"{table.path}: the objective reads `{column}` of every candidate, and the score `{score}` is missing in "
                f"{record.source}{hint if names else '; the table has no scores'}"
            )
    return tuple(candidate.scores[score] for candidate in record.candidates)


def with_users(view: View, least: int) -> View:
    """Remove from the view the records of users with fewer than `least` rows, log how many these are, and return the view.

    Raises TableError if no user is left.
    """
    rows: dict[str, set[int]] = {}
    for entry in view.entries:
        if entry.user:
            rows.setdefault(entry.user, set()).add(entry.row)
    entries = [entry for entry in view.entries if entry.user and len(rows[entry.user]) >= least]
    users = {entry.user for entry in entries}
    if not users:
        most = max(map(len, rows.values()), default=0)
        raise TableError(
            f"{view.table.path}: no user has {least} labelled pairs, which this user encoder needs of each (one to train on, the others "
            f"as evidence); found {len(rows)} named users, the most active with {most} pairs. Records name their user in the column user_id"
        )
    if len(entries) < len(view.entries):
        logger.info(
            "%d of %d records are left out: they name no user, or one with fewer than %d pairs; %d users are left",
            *(len(view.entries) - len(entries), len(view.entries), least, len(users)),
        )
    view.keep(entries, "have no user with enough pairs")
    return view
