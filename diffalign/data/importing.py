"""Imports a dataset of any known layout into a preference table."""

from __future__ import annotations

import atexit
import hashlib
import itertools
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from diffalign.core.errors import ConfigError, did_you_mean
from diffalign.core.progress import progress
from diffalign.data.readers import READERS, read
from diffalign.data.readers.archives import unpacked
from diffalign.data.readers.detect import detect
from diffalign.data.records import Record
from diffalign.data.table import Table, is_table, read_table, write_table


def import_dataset(
    source: str,
    path: Path,
    *,
    reader: str | None = None,
    split: str | None = None,
    skip_bad: bool = False,
    overwrite: bool = False,
    limit: int | None = None,
) -> Table:
    """Import a dataset into a preference table and return the table.

    Args:
        source: dataset file, folder, zip or tar archive of these, or hub id.
        path: folder of the new table.
        reader: a key of `READERS`; without it the reader is found from the first rows.
        split: split of a hub dataset, or the files of a folder that have this name.
        skip_bad: leave out rows that cannot be read, and list them in the manifest, instead of raising RecordError for the first.
        overwrite: replace a table at `path`.
        limit: number of records to import at most; all if None.

    Raises ConfigError for an unknown reader, RecordError for a bad row, TableError if `path` is taken or no row can be read.

    Example:
        >>> import_dataset("votes.csv", Path("outputs/votes"), reader="columns")  # doctest: +SKIP
    """
    if reader is not None and reader not in READERS:
        raise ConfigError(f"there is no reader `{reader}`.{did_you_mean(reader, READERS)}")
    rejected: list[dict[str, str]] = []
    facts = {"dataset_name": source, "split": split, "limit": limit, "stamp": stamp_of(source)}
    with unpacked(source) as place:
        name = reader or detect(place, split)
        records = read(READERS[name], place, split=split, rejected=rejected if skip_bad else None)
        if place != source:
            records = _named(records, place, source, rejected)
        bar = progress(itertools.islice(records, limit), desc=f"import {name}", unit="rows", total=limit)
        return write_table(path, bar, rejected=rejected, overwrite=overwrite, reader=name, **facts)


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
    return import_dataset(dataset_name, Path(folder) / "table", skip_bad=True)
