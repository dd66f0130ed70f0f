"""A table that is being imported: its rows so far, and how far the source was read, so that the same import after a kill goes on there.

It lies in `.NAME.import` beside the table until that is whole. Rows are written in the batches of the table, so all but those of the last
batch are found again; of the pieces of the source a journal says how many records each gave, once its last one is taken.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from diffalign.core.documents import read_mapping
from diffalign.core.errors import TableError
from diffalign.core.files import atomic_folder, write
from diffalign.core.locks import locked
from diffalign.data.readers.parsing import Parsed
from diffalign.data.records import Record
from diffalign.data.table import CHUNK, MANIFEST, ROWS, SCHEMA, Audit, Table, check_free, counted, keep_caches, write_rows

logger = logging.getLogger(__name__)
VERSION = 1
FACTS, JOURNAL, EARLIER = "import.json", "pieces.jsonl", "earlier.arrow"
MAGIC = 8  # bytes before the stream in an Arrow file


class Unfinished:
    """What an import has made so far, in `folder`: `rejected` are the rows that could not be read, of all pieces in their order."""

    def __init__(self, folder: Path, facts: Mapping[str, Any], rejected: list[dict[str, str]], limit: int | None) -> None:
        self.folder, self.rejected = folder, rejected
        about = {"version": VERSION, **facts}
        if _facts(folder) != about:
            _remove(folder)
            (folder / FACTS).write_text(json.dumps(about) + "\n", encoding="utf-8")
        self._done = _journal(folder / JOURNAL)
        self._batches = _kept(folder) if limit is None else min(_kept(folder), limit // CHUNK)

    @property
    def rows(self) -> int:
        """The number of rows that an earlier import has left."""
        return self._batches * CHUNK

    def records(self, parsed: Callable[[int], Iterator[Parsed]], limit: int | None) -> Iterator[Record]:
        """Yield the records that are still missing; `parsed` gives what pieces of the source are parsed to, from a number on."""
        piece, before = self._place(self.rows)
        self._done = self._done[:piece]
        self.rejected += itertools.chain.from_iterable(done["rejected"] for done in self._done)
        write({self.folder / JOURNAL: "".join(json.dumps(done) + "\n" for done in self._done)})
        return itertools.islice(self._missing(parsed(piece), before), None if limit is None else limit - self.rows)

    def _missing(self, parts: Iterator[Parsed], before: int) -> Iterator[Record]:
        """Yield the records of pieces but for the first ones, which are there, and write down how many each of them has given."""
        with (self.folder / JOURNAL).open("a", encoding="utf-8") as journal:
            for part in parts:
                count = 0
                for count, record in enumerate(part.records, 1):
                    if count > before:
                        yield record
                before = 0
                self.rejected += part.rejected
                journal.write(json.dumps({"records": count, "rejected": part.rejected}) + "\n")
                journal.flush()

    def written(self, records: Iterable[Record], manifest: Mapping[str, Any], path: Path) -> Table:
        """Write what an earlier import has left and `records` as a table in the folder; errors call it `path`."""
        audit = Audit()
        before = itertools.islice(_stream(self.folder / EARLIER), self._batches)
        write_rows(self.folder / ROWS, records, audit, before)
        facts = counted(audit, self.rejected, manifest, path) | dict(manifest)
        write({self.folder / MANIFEST: json.dumps(facts, indent=2) + "\n"})
        return Table(self.folder)

    def moved_to(self, path: Path, *, overwrite: bool) -> Table:
        """Give the table its place at `path`."""
        check_free(path, overwrite)
        with atomic_folder(path) as folder:
            for name in (ROWS, MANIFEST):
                _second_name(self.folder / name, folder / name)
            keep_caches(path, folder)
        return Table(path)

    def _place(self, rows: int) -> tuple[int, int]:
        """Return the piece of the source to go on with after so many rows, and how many of its records are there already."""
        for number, done in enumerate(self._done):
            if rows < done["records"]:
                return number, rows
            rows -= done["records"]
        return len(self._done), rows


@contextlib.contextmanager
def unfinished(path: Path, facts: Mapping[str, Any], rejected: list[dict[str, str]], limit: int | None) -> Iterator[Unfinished]:
    """Give what an import to `path` of the same `facts` has left, for the block; afterwards it is removed, unless it was worth keeping.

    Raises ConfigError where another process imports to that path, and TableError where the disk cannot be written.
    """
    path = path.resolve()  # so that a link goes on pointing to the table
    folder = path.with_name(f".{path.name}.import")
    with _emptied(folder), locked(folder):
        try:
            own = Unfinished(folder, facts, rejected, limit)
            if own.rows:
                logger.info("%s: goes on after the %d rows that an earlier import has left", path, own.rows)
            yield own
        except BaseException as error:
            kept = any(True for file in (ROWS, EARLIER) for _ in _stream(folder / file))
            if not kept:
                _remove(folder)
            then = f"; what was read is kept in {folder}, and the same import goes on there" if kept else ""
            if isinstance(error, OSError):
                raise TableError(f"{path}: cannot be written ({error.strerror or error}){then}") from error
            if then:
                logger.info("%s: not finished%s", path, then)
            raise
        _remove(folder)


@contextlib.contextmanager
def _emptied(folder: Path) -> Iterator[None]:
    yield
    with contextlib.suppress(OSError):
        folder.rmdir()


def _remove(folder: Path) -> None:
    for name in (FACTS, JOURNAL, EARLIER, ROWS, MANIFEST):
        (folder / name).unlink(missing_ok=True)


def _facts(folder: Path) -> dict[str, Any] | None:
    try:
        return read_mapping(folder / FACTS, TableError)
    except TableError:
        return None


def _journal(file: Path) -> list[dict[str, Any]]:
    """Return the lines of a journal as far as they are whole."""
    done: list[dict[str, Any]] = []
    with contextlib.suppress(OSError, ValueError):
        done += map(json.loads, file.read_text(encoding="utf-8").splitlines())
    return done


def _kept(folder: Path) -> int:
    """Return how many whole batches an earlier import has left in `EARLIER`, which gets the file of rows that holds more of them."""
    rows, earlier = (sum(batch.num_rows == CHUNK for batch in _stream(folder / name)) for name in (ROWS, EARLIER))
    if rows > earlier:
        (folder / ROWS).replace(folder / EARLIER)
    return max(rows, earlier)


def _stream(file: Path) -> Iterator[pa.RecordBatch]:
    """Yield the batches, memory-mapped, of an Arrow file whose end may be missing."""
    with contextlib.suppress(pa.ArrowException, OSError, ValueError):
        content = pa.memory_map(str(file)).read_buffer()
        reader = pa.ipc.open_stream(content.slice(MAGIC))
        if reader.schema.equals(SCHEMA):
            yield from reader


def _second_name(source: Path, target: Path) -> None:
    """Give a file a second name, or, on a disk where it can have one alone, move it."""
    try:
        os.link(source, target)
    except OSError:
        source.replace(target)
