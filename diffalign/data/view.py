"""A table after transforms: records are filtered, reordered or expanded without copying, or even reading, an image."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa

from diffalign.core.errors import RecordError, TableError, did_you_mean
from diffalign.data.entries import TEXTS, Block, Entries, Entry, joined
from diffalign.data.records import Record
from diffalign.data.table import CONDITIONING, Table, from_row, to_row
from diffalign.data.transforms import Transform, transformed
from diffalign.data.transforms.columns import Twin, labelled, through, twins
from diffalign.data.usage import Usage

logger = logging.getLogger(__name__)

NO_COLUMNS: Mapping[str, str] = MappingProxyType({})


class View(Sequence[Record]):
    """The first `limit` rows of `table` (all if None) after `transforms`; images are read when a record is indexed.

    `columns`, {column: score}, names the candidates' scores that an objective reads. Raises TableError if a candidate lacks one.
    """

    def __init__(
        self, table: Table, transforms: Sequence[Transform], limit: int | None = None, columns: Mapping[str, str] = NO_COLUMNS
    ) -> None:
        self.table, self.columns = table, tuple(columns)
        self.usage = Usage()
        chain, blocks, start = None if columns else twins(transforms), list[Block](), 0
        for batch in table.batches():
            number = batch.num_rows if limit is None else min(batch.num_rows, limit - start)
            if number <= 0:
                break
            blocks.append(self._block(batch, start, number, transforms, chain, columns))
            start += batch.num_rows
        self.entries = Entries(table, joined(blocks, len(columns)))

    def _block(
        self,
        batch: pa.RecordBatch,
        start: int,
        number: int,
        transforms: Sequence[Transform],
        chain: Sequence[Twin] | None,
        columns: Mapping[str, str],
    ) -> Block:
        """Return the entries of the first `number` rows of a batch, which begins at a row of the table."""
        pairs = None if chain is None else labelled(batch, number)
        after = None if pairs is None or chain is None else through(pairs, chain)
        if pairs is None or after is None:
            return self._one_by_one(batch, np.arange(number), start, transforms, columns)
        made, dropped = after
        self.usage.add_pairs(len(pairs.rows), dropped)
        none, flat = np.full(len(made.rows), np.nan), made.order.ravel()
        counts = np.full(len(made.rows), 2, np.int64)
        block = Block(made.rows + start, counts, flat, made.prob, none, none, np.empty((len(flat), 0)))
        if len(pairs.rows) == number:
            return block
        others = self._one_by_one(batch, np.setdiff1d(np.arange(number), pairs.rows), start, transforms, columns)
        both = joined([block, others], len(columns))
        return both.take(np.argsort(both.rows, kind="stable"))

    def _one_by_one(
        self, batch: pa.RecordBatch, rows: np.ndarray, start: int, transforms: Sequence[Transform], columns: Mapping[str, str]
    ) -> Block:
        entries, texts = list[Entry](), {name: list[Any]() for name in TEXTS}
        wanted = None if len(rows) == batch.num_rows else rows
        for row, light in zip(rows.tolist(), lights(batch, wanted), strict=True):
            made, dropped_by = transformed(weighted_by_table(light), transforms)
            entries += (_entry(self.table, start + row, record, columns) for record in made)
            for name, values in texts.items():
                own = getattr(light, name)
                values += (None if getattr(record, name) == own else to_row(record)[name] for record in made)
            self.usage.add(light, made, dropped_by)
        return Block.of(entries, texts, len(columns))

    def keep(self, positions: Sequence[int] | np.ndarray, reason: str) -> None:
        """Go on with the entries at `positions`; table records of which none is left are counted under `reason`."""
        before, self.entries = self.entries, self.entries.take(positions)
        self.usage.leave_out(len(np.unique(before.rows)) - len(np.unique(self.entries.rows)), reason)

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
        yield from lights(batch)


def lights(batch: pa.RecordBatch, wanted: np.ndarray | None = None) -> Iterator[Record]:
    """Yield the records of a batch of a table, or those of its rows that are `wanted`, without content."""
    lists = batch.column("candidates")
    values = lists.values
    nulls = {"image": pa.nulls(len(values), pa.large_binary()), "text": pa.nulls(len(values), pa.large_string())}
    nulls |= {CONDITIONING: nulls["image"]}
    names = [field.name for field in values.type]
    light = pa.StructArray.from_arrays([nulls.get(n, values.field(n)) for n in names], fields=list(values.type))
    rows = batch.set_column(batch.schema.get_field_index("candidates"), "candidates", pa.ListArray.from_arrays(lists.offsets, light))
    rows = rows.drop_columns([CONDITIONING]) if CONDITIONING in rows.schema.names else rows
    for row in (rows if wanted is None else rows.take(pa.array(wanted))).to_pylist():
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
            if score in names:
                hint = ", which other records have; score all of the table with `diffalign score`, or leave that record out"
            raise TableError(
                f"{table.path}: training reads `{column}` of every candidate, and the score `{score}` is missing in "
                f"{record.source}{hint if names else '; the table has no scores'}"
            )
    return tuple(candidate.scores[score] for candidate in record.candidates)


def with_users(view: View, least: int) -> View:
    """Remove from the view the records of users with fewer than `least` rows, log how many these are, and return the view.

    Raises TableError if no user is left.
    """
    names, owner = view.entries.users
    pairs = np.unique(np.stack([owner, view.entries.rows]), axis=1)[0]  # a user's rows, each once
    rows = np.bincount(pairs[pairs >= 0], minlength=len(names))
    kept = np.flatnonzero((owner >= 0) & np.isin(owner, np.flatnonzero(rows >= least)))
    if not len(kept):
        raise TableError(
            f"{view.table.path}: no user has {least} labelled pairs, which this user encoder needs of each (one to train on, the others "
            f"as evidence); found {len(names)} named users, the most active with {rows.max(initial=0)} pairs. Records name their user in "
            "the column user_id"
        )
    if len(kept) < len(view.entries):
        logger.info(
            "%d of %d records are left out: they name no user, or one with fewer than %d pairs; %d users are left",
            *(len(view.entries) - len(kept), len(view.entries), least, (rows >= least).sum()),
        )
    view.keep(kept, "have no user with enough pairs")
    return view
