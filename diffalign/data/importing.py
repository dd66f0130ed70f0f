"""Reads a dataset of any known layout into a preference table."""

from __future__ import annotations

import atexit
import itertools
import shutil
import tempfile
from pathlib import Path

from tqdm.auto import tqdm

from diffalign.core.errors import ConfigError, did_you_mean
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
    """Read `source` with the named reader (or the one its columns fit) into a table at `path`, and return it.

    Raises ConfigError for an unknown reader, RecordError for the first bad row unless `skip_bad`, TableError if no row is left.
    """
    name = reader or detect(source, split)
    if name not in READERS:
        raise ConfigError(f"there is no reader `{name}`.{did_you_mean(name, READERS)}")
    rejected: list[dict[str, str]] = []
    records = read(READERS[name], source, split=split, rejected=rejected if skip_bad else None)
    bar = tqdm(itertools.islice(records, limit), desc=f"import {name}", unit=" rows", total=limit, disable=None)
    return write_table(path, bar, rejected=rejected, overwrite=overwrite, reader=name, dataset_name=source, split=split)


def open_any(dataset_name: str) -> Table:
    """Return the table at `dataset_name`, or a dataset imported into a temporary table that lives as long as the process."""
    if is_table(dataset_name):
        return read_table(dataset_name)
    folder = tempfile.mkdtemp(prefix="diffalign-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return import_dataset(dataset_name, Path(folder) / "table", skip_bad=True)
