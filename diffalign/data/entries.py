"""The records of a view as columns of numbers: some fifty bytes each, and an `Entry` for one that is looked at.

What a transform leaves as it is in the table, such as prompts and ids, stays on the disk.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute

from diffalign.data.records import Message
from diffalign.data.table import MESSAGES, Table

compute: Any = pyarrow.compute  # whose functions are made at import, which type checkers do not see
TEXTS: dict[str, pa.DataType] = {"id": pa.large_string(), "prompt": pa.large_string(), "messages": MESSAGES}  # what a transform may change


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


@dataclass(frozen=True, slots=True)
class Block:
    """Some entries as columns; a text is null where it is that of the table."""

    rows: np.ndarray  # (N,) int64
    counts: np.ndarray  # (N,) int64, of candidates
    order: np.ndarray  # (sum of counts,) int32
    prob: np.ndarray  # (N,) float64
    weight: np.ndarray  # (N,) float64, NaN for none
    offset: np.ndarray  # (N,) float64, NaN for none
    columns: np.ndarray  # (sum of counts, columns of the view) float64
    texts: dict[str, pa.Array] = field(default_factory=dict)  # by name of `TEXTS`; none where all are null

    @classmethod
    def of(cls, entries: Sequence[Entry], texts: dict[str, list[Any]], columns: int) -> Block:
        """Return entries as a block; `texts` are those of their texts that are not the table's, else None."""
        numbers = {name: np.array([getattr(e, name) for e in entries], np.float64) for name in ("prob", "weight", "offset")}
        own = [row for e in entries for row in (zip(*e.columns, strict=True) if e.columns else [()] * len(e.order))]
        return cls(
            np.array([e.row for e in entries], np.int64),
            np.array([len(e.order) for e in entries], np.int64),
            np.array([place for e in entries for place in e.order], np.int32),
            numbers["prob"],
            numbers["weight"],
            numbers["offset"],
            np.array(own, np.float64).reshape(len(own), columns),
            {name: pa.array(values, TEXTS[name]) for name, values in texts.items() if any(value is not None for value in values)},
        )

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, positions: np.ndarray) -> Block:
        """Return the entries at `positions` (int64), in their order."""
        first = _starts(self.counts)
        counts = self.counts[positions]
        places = np.repeat(first[:-1][positions] - _starts(counts)[:-1], counts) + np.arange(counts.sum())
        numbers = {name: getattr(self, name)[positions] for name in ("rows", "prob", "weight", "offset")}
        texts = {name: values.take(pa.array(positions)) for name, values in self.texts.items()}
        return Block(counts=counts, order=self.order[places], columns=self.columns[places], texts=texts, **numbers)


def joined(blocks: Sequence[Block], columns: int) -> Block:
    """Return the entries of all blocks, one after the other."""
    blocks = [block for block in blocks if len(block)] or [Block.of([], {}, columns)]
    names = ("rows", "counts", "order", "prob", "weight", "offset", "columns")
    numbers = {name: np.concatenate([getattr(block, name) for block in blocks]) for name in names}
    texts = {}
    for name, kind in TEXTS.items():
        if any(name in block.texts for block in blocks):
            parts = [block.texts.get(name, pa.nulls(len(block), kind)) for block in blocks]
            texts[name] = pa.concat_arrays(parts)
    return Block(**numbers, texts=texts)


class Entries(Sequence[Entry]):
    """The entries of a view on `table`; `block` holds them as columns, for what looks at all of them."""

    __hash__ = None  # pyright: ignore[reportAssignmentType]  # compared by content, as lists are

    def __init__(self, table: Table, block: Block) -> None:
        self.table, self.block = table, block
        self._first = _starts(block.counts)

    def __len__(self) -> int:
        return len(self.block)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    @overload
    def __getitem__(self, index: int) -> Entry: ...

    @overload
    def __getitem__(self, index: slice) -> Entries: ...

    def __getitem__(self, index: int | slice) -> Entry | Entries:
        if isinstance(index, slice):
            return self.take(np.arange(len(self))[index])
        own, place = self.block, range(len(self))[index]
        row, span = int(own.rows[place]), slice(int(self._first[place]), int(self._first[place + 1]))
        messages = self._text("messages", place, row)
        return Entry(
            row,
            tuple(own.order[span].tolist()),
            self._text("id", place, row),
            self._text("prompt", place, row),
            float(own.prob[place]),
            self._text("user", place, row),
            tuple(Message(**message) for message in messages) if messages else (),
            _number(own.weight[place]),
            _number(own.offset[place]),
            tuple(tuple(column) for column in own.columns[span].T.tolist()),
        )

    def _text(self, name: str, place: int, row: int) -> Any:
        changed = self.block.texts.get(name)
        value = None if changed is None else changed[place].as_py()
        return self.table.scattered(name)[row].as_py() if value is None else value

    def texts(self, name: str) -> Iterator[Any]:
        """Yield the id, prompt or user of every entry."""
        return (self._text(name, place, row) for place, row in enumerate(self.rows.tolist()))

    def take(self, positions: Sequence[int] | np.ndarray) -> Entries:
        """Return the entries at `positions`, in their order."""
        return Entries(self.table, self.block.take(np.asarray(positions, np.int64)))

    @property
    def rows(self) -> np.ndarray:
        """The table row (N,) of every entry."""
        return self.block.rows

    @property
    def counts(self) -> np.ndarray:
        """The number of candidates (N,) of every entry."""
        return self.block.counts

    @property
    def prob(self) -> np.ndarray:
        """The chance (N,) that candidate 0 is preferred."""
        return self.block.prob

    @property
    def weighted(self) -> bool:
        """Whether some have a weight or an offset."""
        return not (np.isnan(self.block.weight).all() and np.isnan(self.block.offset).all())

    @property
    def candidates(self) -> list[tuple[int, int]]:
        """The table row of every candidate of every entry, and its place among those of the row."""
        return list(zip(np.repeat(self.rows, self.counts).tolist(), self.block.order.tolist(), strict=True))

    @property
    def rows_with_images(self) -> list[int]:
        """The table rows, ascending, of entries that have candidates."""
        return np.unique(self.rows[self.counts > 0]).tolist()

    @functools.cached_property
    def prompts(self) -> tuple[str, ...]:
        """The distinct prompts, those of the table first."""
        changed, mask = self.block.texts.get("prompt"), np.zeros(len(self.table), bool)
        mask[self.rows if changed is None else self.rows[changed.is_null().to_numpy(zero_copy_only=False)]] = True
        own = self.table.scattered("prompt").filter(pa.array(mask)).unique().to_pylist()
        return tuple(dict.fromkeys(own + ([] if changed is None else changed.drop_null().unique().to_pylist())))

    @functools.cached_property
    def users(self) -> tuple[list[str], np.ndarray]:
        """The names of all users, sorted, and the place (N,) of every entry's user among them, -1 where it names none."""
        column = self.table.scattered("user")
        names = pa.array(sorted(name for name in column.unique().to_pylist() if name), column.type)
        places = compute.fill_null(compute.index_in(column, names), -1).to_numpy().astype(np.int64)[self.rows]
        used, places = np.unique(places, return_inverse=True)
        kept = used[used >= 0]
        return names.take(pa.array(kept)).to_pylist(), places - (len(used) - len(kept))

    @property
    def conversational(self) -> bool:
        """Whether some are conversations."""
        changed = self.block.texts.get("messages")
        lengths = compute.fill_null(compute.list_value_length(self.table.scattered("messages")), 0).to_numpy()[self.rows]
        own = lengths if changed is None else np.where(changed.is_null(), lengths, compute.fill_null(compute.list_value_length(changed), 0))
        return bool((own > 0).any())


def _starts(counts: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])


def _number(value: np.float64) -> float | None:
    return None if np.isnan(value) else float(value)
