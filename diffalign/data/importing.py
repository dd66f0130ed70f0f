"""Imports a dataset of any known layout into a preference table."""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from diffalign.core.errors import ConfigError, did_you_mean
from diffalign.core.progress import progress
from diffalign.data.duplicates import merged
from diffalign.data.readers import READERS
from diffalign.data.readers.archives import unpacked
from diffalign.data.readers.detect import detect
from diffalign.data.readers.parsing import Parsed, parsed
from diffalign.data.readers.pieces import pieces
from diffalign.data.readers.sources import dataset_name, is_dataset, matching
from diffalign.data.records import Record
from diffalign.data.table import Table, check_free, is_table, read_table, write_table
from diffalign.data.unfinished import unfinished


def import_dataset(
    source: Any,
    path: Path,
    *,
    reader: str | None = None,
    split: str | None = None,
    skip_bad: bool = False,
    overwrite: bool = False,
    limit: int | None = None,
    merge: bool = False,
    num_proc: int = 1,
) -> Table:
    """Import a dataset into a preference table and return the table; the same call after a kill goes on from `.NAME.import` beside it.

    Args:
        source: dataset file, folder, archive of these (zip, tar), hub id, table, or dataset of `datasets`, loaded or streamed.
        path: folder of the new table.
        reader: a key of `READERS`; without it the reader is found from the first rows.
        split: split of a hub dataset, or the files of a folder that have this name.
        skip_bad: leave out rows that cannot be read, and list them in the manifest, instead of raising RecordError for the first.
        overwrite: replace a table at `path`.
        limit: number of records to import at most; all if None.
        merge: make one record of each pair, whose label is the share of all its labels; pairs of one candidate twice are left out.
        num_proc: processes that parse rows and check pictures; a script with more than one works under `if __name__ == "__main__"`.

    Raises ConfigError for an unknown reader, RecordError for a bad row, TableError if `path` is taken or no row can be read.

        >>> import_dataset("votes.csv", Path("outputs/votes"), reader="columns")  # doctest: +SKIP
    """
    _check(path, overwrite, reader, num_proc)
    with _opened(source, reader, split) as (name, of_pieces):
        facts = {"dataset_name": dataset_name(source), "split": split, "stamp": stamp_of(source), "reader": name}
        with unfinished(path, facts | {"merge": merge}, rejected := list[dict[str, str]](), limit) as begun:
            records = begun.records(lambda first: of_pieces(first, skip_bad, num_proc), limit)
            bar = progress(records, desc=f"import {name}", unit="rows", total=limit, initial=begun.rows)
            whole = begun.written(bar, facts := facts | {"limit": limit}, path)
            if not merge:
                return begun.moved_to(path, overwrite=overwrite)
            facts |= {"merged_from": len(whole)}
            return write_table(path, merged(whole, rejected), rejected=rejected, overwrite=overwrite, **facts)


def _check(path: Path, overwrite: bool, reader: str | None, num_proc: int) -> None:
    """Raise TableError where `path` is taken, ConfigError for an unknown reader, or less than one process."""
    check_free(path, overwrite)
    if reader is not None and reader not in READERS:
        raise ConfigError(f"there is no reader `{reader}`.{did_you_mean(reader, READERS)}")
    if num_proc < 1:
        raise ConfigError(f"`num_proc` is {num_proc}; expected at least 1")


Opened = Callable[[int, bool, int], Iterator[Parsed]]  # (number of the first piece, skip_bad, num_proc)


@contextlib.contextmanager
def _opened(source: Any, reader: str | None, split: str | None) -> Iterator[tuple[str, Opened]]:
    """Give the name of the reader of `source`, and what its pieces are parsed to; the records of a table are one piece."""
    if not is_dataset(source) and is_table(source):
        table = read_table(source)
        yield table.manifest.get("reader", "table"), lambda first, *_: iter([Parsed(iter(table), [])][first:])
        return
    with contextlib.nullcontext(source) if is_dataset(source) else unpacked(source) as place:
        name = reader or detect(place, split)

        def of_pieces(first: int, skip_bad: bool, num_proc: int) -> Iterator[Parsed]:
            parts = parsed(pieces(READERS[name].rows, place, split, first), name, skip_bad=skip_bad, processes=num_proc)
            return parts if place is source else (_named(part, place, source) for part in parts)

        yield name, of_pieces


def _named(part: Parsed, place: str, source: str) -> Parsed:
    """Return a piece with the name of the archive in the place of the folder that it was unpacked to."""

    def records() -> Iterator[Record]:
        for record in part.records:
            yield replace(record, source=record.source.replace(place, source))
        part.rejected[:] = [{key: text.replace(place, source) for key, text in row.items()} for row in part.rejected]

    return replace(part, records=records())


def stamp_of(source: Any) -> str | None:
    """Return a hash of names, sizes and times of a dataset's files, which changes when they do; None for a hub dataset.

    Of a dataset of `datasets` it is the hash of its content that this keeps, None of one that is streamed.
    """
    if is_dataset(source):
        return getattr(source, "_fingerprint", None)
    root, digest = Path(source).expanduser(), hashlib.sha256()
    files = [] if root.exists() else matching(source)
    if not root.exists() and not files:
        return None
    for file in files or sorted(path for path in (root.rglob("*") if root.is_dir() else (root,)) if path.is_file()):
        facts = file.stat()
        digest.update(repr((str(file) if files else file.relative_to(root).as_posix(), facts.st_size, facts.st_mtime_ns)).encode())
    return digest.hexdigest()[:32]


def open_any(dataset_name: str) -> Table:
    """Return the table at `dataset_name`, or import a dataset of any other kind into a temporary table, removed when the process ends."""
    if is_table(dataset_name):
        return read_table(dataset_name)
    folder = tempfile.mkdtemp(prefix="diffalign-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    table = import_dataset(dataset_name, Path(folder) / "table", skip_bad=True)
    return Table(table.path, name=dataset_name)
