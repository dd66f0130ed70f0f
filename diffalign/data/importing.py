"""Imports a dataset of any known layout into a preference table."""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import itertools
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from diffalign.core.errors import ConfigError, did_you_mean
from diffalign.core.progress import progress
from diffalign.data.duplicates import merged
from diffalign.data.readers import READERS, read
from diffalign.data.readers.archives import unpacked
from diffalign.data.readers.detect import detect
from diffalign.data.records import Record
from diffalign.data.table import Table, check_free, is_table, read_table, write_table


def import_dataset(
    source: str,
    path: Path,
    *,
    reader: str | None = None,
    split: str | None = None,
    skip_bad: bool = False,
    overwrite: bool = False,
    limit: int | None = None,
    merge: bool = False,
) -> Table:
    """Import a dataset into a preference table and return the table.

    Args:
        source: dataset file, folder, zip or tar archive of these, hub id, or a table.
        path: folder of the new table.
        reader: a key of `READERS`; without it the reader is found from the first rows.
        split: split of a hub dataset, or the files of a folder that have this name.
        skip_bad: leave out rows that cannot be read, and list them in the manifest, instead of raising RecordError for the first.
        overwrite: replace a table at `path`.
        limit: number of records to import at most; all if None.
        merge: make one record of each pair, whose label is the share of all its labels; pairs of one candidate twice are left out.

    Raises ConfigError for an unknown reader, RecordError for a bad row, TableError if `path` is taken or no row can be read.

    Example:
        >>> import_dataset("votes.csv", Path("outputs/votes"), reader="columns")  # doctest: +SKIP
    """
    check_free(path, overwrite)
    if reader is not None and reader not in READERS:
        raise ConfigError(f"there is no reader `{reader}`.{did_you_mean(reader, READERS)}")
    rejected: list[dict[str, str]] = []
    facts: dict[str, Any] = {"dataset_name": source, "split": split, "limit": limit, "stamp": stamp_of(source)}
    with _records(source, reader, split, rejected, skip_bad) as (name, records):
        bar = progress(itertools.islice(records, limit), desc=f"import {name}", unit="rows", total=limit)
        if not merge:
            return write_table(path, bar, rejected=rejected, overwrite=overwrite, reader=name, **facts)
        return _merge(bar, path, rejected, overwrite, facts | {"reader": name})


def _merge(records: Iterable[Record], path: Path, rejected: list[dict[str, str]], overwrite: bool, facts: dict[str, Any]) -> Table:
    """Write a table in which every pair stands once; the votes lie in a table beside it meanwhile, since memory may not hold them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.votes-", dir=path.parent) as folder:
        votes = write_table(Path(folder) / "votes", records, rejected=rejected)
        return write_table(path, merged(votes, rejected), rejected=rejected, overwrite=overwrite, merged_from=len(votes), **facts)


@contextlib.contextmanager
def _records(
    source: str, reader: str | None, split: str | None, rejected: list[dict[str, str]], skip_bad: bool
) -> Iterator[tuple[str, Iterator[Record]]]:
    """Give the name of the reader of `source` and the records that it yields; those of a table as they are."""
    if is_table(source):
        table = read_table(source)
        yield table.manifest.get("reader", "table"), iter(table)
        return
    with unpacked(source) as place:
        name = reader or detect(place, split)
        records = read(READERS[name], place, split=split, rejected=rejected if skip_bad else None)
        yield name, records if place == source else _named(records, place, source, rejected)


def _named(records: Iterator[Record], place: str, source: str, rejected: list[dict[str, str]]) -> Iterator[Record]:
    """Yield records, and list rejected rows, with the name of the archive in the place of the folder that it was unpacked to."""
    for record in records:
        yield replace(record, source=record.source.replace(place, source))
    rejected[:] = [{key: text.replace(place, source) for key, text in row.items()} for row in rejected]


def stamp_of(source: str) -> str | None:
    """Return a hash of names, sizes and times of a dataset's files, which changes when they do; None for a hub dataset."""
    root = Path(source).expanduser()
    if not root.exists():
        return None
    digest = hashlib.sha256()
    for file in sorted(path for path in (root.rglob("*") if root.is_dir() else (root,)) if path.is_file()):
        facts = file.stat()
        digest.update(repr((file.relative_to(root).as_posix(), facts.st_size, facts.st_mtime_ns)).encode())
    return digest.hexdigest()[:32]


def open_any(dataset_name: str) -> Table:
    """Return the table at `dataset_name`, or import a dataset of any other kind into a temporary table, removed when the process ends."""
    if is_table(dataset_name):
        return read_table(dataset_name)
    folder = tempfile.mkdtemp(prefix="diffalign-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    table = import_dataset(dataset_name, Path(folder) / "table", skip_bad=True)
    return Table(table.path, name=dataset_name)
