"""Imports a dataset of any known layout into a preference table."""

from __future__ import annotations

import atexit
import itertools
import shutil
import tempfile
from pathlib import Path

from diffalign.core.errors import ConfigError, did_you_mean
from diffalign.core.progress import progress
from diffalign.data.readers import READERS, read
from diffalign.data.readers.detect import detect
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
        source: dataset file, folder or hub id.
        path: folder of the new table.
        reader: a key of `READERS`; without it the reader is found from the columns of the first row.
        split: split of a hub dataset, or the files of a folder that have this name.
        skip_bad: leave out rows that cannot be read, and list them in the manifest, instead of raising RecordError for the first.
        overwrite: replace a table at `path`.
        limit: number of records to import at most; all if None.

    Raises ConfigError for an unknown reader, RecordError for a bad row, TableError if `path` is taken or no row can be read.

    Example:
        >>> import_dataset("votes.csv", Path("outputs/votes"), reader="columns")  # doctest: +SKIP
    """
    name = reader or detect(source, split)
    if name not in READERS:
        raise ConfigError(f"there is no reader `{name}`.{did_you_mean(name, READERS)}")
    rejected: list[dict[str, str]] = []
    records = read(READERS[name], source, split=split, rejected=rejected if skip_bad else None)
    bar = progress(itertools.islice(records, limit), desc=f"import {name}", unit="rows", total=limit)
    return write_table(path, bar, rejected=rejected, overwrite=overwrite, reader=name, dataset_name=source, split=split)


def open_any(dataset_name: str) -> Table:
    """Return the table at `dataset_name`, or import a dataset of any other kind into a temporary table, removed when the process ends."""
    if is_table(dataset_name):
        return read_table(dataset_name)
    folder = tempfile.mkdtemp(prefix="diffalign-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return import_dataset(dataset_name, Path(folder) / "table", skip_bad=True)
