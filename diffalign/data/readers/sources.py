"""Opens a dataset as rows: a file of any known kind, a folder of such files, or a hub dataset."""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from diffalign.core.errors import RecordError
from diffalign.data.readers.base import Row, shown
from diffalign.data.readers.delimited import delimited_rows
from diffalign.data.readers.json_rows import json_line_rows, json_rows
from diffalign.data.readers.rows import Columns, RawRow
from diffalign.data.readers.webdataset import webdataset_rows

RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")  # of numbers, as webdataset names shards
BATCH = 64  # rows held as Python objects at a time; a `save_to_disk` file may hold a thousand images in one record batch
BOOKKEEPING = ("dataset_info.json", "dataset_infos.json", "state.json", "dataset_dict.json")  # what `save_to_disk` writes beside the rows
COMPRESSED = (".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".tar")  # also with .gz
SHEET = ", a spreadsheet: save it as CSV (in Excel: Save As, CSV UTF-8)"
PICKLE = ", which runs code when it is opened: write the rows with DataFrame.to_parquet instead"
OTHERS = {**dict.fromkeys((".xlsx", ".xls", ".ods", ".numbers"), SHEET), **dict.fromkeys((".pkl", ".pickle", ".pt"), PICKLE)}
INSTEAD = {  # what stands in the place of a table, by how it begins
    b"version https://git-lfs": "a git-lfs pointer; fetch the files themselves with `git lfs pull`",
    b"<!doctype html": "a web page",
    b"<html": "a web page",
}
UNREADABLE = (pa.ArrowException, UnicodeDecodeError, zlib.error, EOFError, OSError, ValueError, OverflowError)


def open_rows(source: Any, split: str | None = None, *, skip: int = 0) -> Iterator[Row]:
    """Yield the rows of a dataset file, of a folder of such files (also one made by `save_to_disk`), or of a hub dataset, streamed.

    Files are parquet, arrow, JSON, JSONL, CSV, TSV or webdataset shards; several are named by a pattern, as `shards/*.tar` or
    `shards/{00000..00099}.tar`. `split` selects the files of a folder, or the split of a hub
    dataset, by name; a single file is read whole. `source` may also be a dataset of `datasets`, loaded or streamed. The first `skip`
    rows of a hub dataset, or of one that is given, are left out. Raises RecordError if nothing can be opened.
    """
    if is_dataset(source):
        yield from _dataset_rows(source, dataset_name(source), skip)
    elif is_local(source):
        files = dataset_files(source, split)
        for file, name in files:
            yield from file_rows(file, name, alone=len(files) == 1)
    elif _looks_like_path(source):
        raise RecordError(f"{source}: there is no such file or folder; expected a dataset file, a folder or a hub id like `owner/name`")
    else:
        yield from _hub_rows(source, split, skip)


def is_dataset(source: Any) -> bool:
    """Return whether `source` is a dataset of `datasets`, and no name of one."""
    return not isinstance(source, str | Path)


def dataset_name(source: Any) -> str:
    """Return what messages and records call a source: its name, or that in the facts of a dataset."""
    if not is_dataset(source):
        return str(source)
    return getattr(getattr(source, "info", None), "dataset_name", None) or type(source).__name__


def local_path(source: str) -> Path:
    """Return a source as a path; `~` is the home folder. Raises RecordError for an address, and for what cannot be a path."""
    if source.lower().startswith(("http://", "https://", "s3://", "gs://")):
        raise RecordError(f"{source}: an address is not opened; download the file first, and name where it is then")
    path = Path(source).expanduser()
    try:
        path.is_file()
    except (OSError, ValueError) as error:
        raise RecordError(f"{shown(source)}: cannot be a path ({error})") from error
    return path


def _looks_like_path(source: str) -> bool:
    return source.startswith((".", "/", "~")) or source.count("/") != 1 or kind_of(Path(source)) in (*FORMATS, ".txt", ".zip")


def kind_of(path: Path) -> str:
    """Return the suffix of a file's name in small letters: `.jsonl`, or `.jsonl.gz` if it is compressed."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    return "".join(suffixes[-2:] if suffixes[-1:] == [".gz"] else suffixes[-1:])


def is_local(source: str) -> bool:
    """Return whether a source is a file, a folder, or a pattern of files that are there."""
    return local_path(source).exists() or bool(matching(source))


def matching(source: str) -> list[Path]:
    """Return the files that a pattern of shards names, sorted; none for a source without `*`, `?` or `{first..last}`.

    Raises RecordError where one of a range of numbers is not there.
    """
    ranged = RANGE.search(source)
    if ranged is None:
        path = local_path(source)
        return sorted(Path(path.anchor).glob(str(path.relative_to(path.anchor)))) if re.search(r"[*?]", source) else []
    first, last = ranged.groups()
    names = [f"{source[: ranged.start()]}{n:0{len(first)}d}{source[ranged.end() :]}" for n in range(int(first), int(last) + 1)]
    files = [file for name in names for file in matching(name) or [local_path(name)]]
    if lacking := next((file for file in files if not file.is_file()), None):
        raise RecordError(f"{source}: there is no {lacking}")
    return files


def dataset_files(source: str, split: str | None = None) -> list[tuple[Path, str]]:
    """Return the dataset files of a source, each with the name that ids of its rows begin with; errors as `open_rows`."""
    path = local_path(source)
    if path.is_file():
        return [(path, path.name)]
    if not path.exists():
        shards = matching(source)
        above = Path(os.path.commonpath([file.parent for file in shards]))
        return [(file, file.relative_to(above).as_posix()) for file in shards]
    files = sorted(f for f in path.rglob("*") if kind_of(f) in FORMATS and f.is_file() and not _is_bookkeeping(f.relative_to(path)))
    if split is not None:
        stems = {f: f.name[: len(f.name) - len(kind_of(f))] for f in files}
        files = [f for f in files if split in (stems[f], stems[f].split("-")[0], *f.relative_to(path).parts)]
    if not files:
        wanted = f" of split `{split}`" if split else ""
        raise RecordError(f"{path}: no dataset file{wanted}; expected one of {', '.join(sorted(FORMATS))}")
    return [(file, file.relative_to(path).as_posix()) for file in files]


def file_rows(path: Path, name: str, *, alone: bool, groups: Sequence[int] | None = None, first: int = 0) -> Iterator[Row]:
    """Yield the rows of a dataset file, or of some row `groups` of a parquet file, whose rows count from `first`.

    Raises RecordError for a file that cannot be read, unless it is not `alone`: then it costs none of the others, and is a broken row.
    """
    try:
        yield from _file_rows(path, name, groups, first)
    except RecordError as error:
        if alone:
            raise
        yield Row(Columns({}), str(path), name, path.parent, str(error))


def _is_bookkeeping(file: Path) -> bool:
    """Return whether `file` holds no rows but was left by `datasets` or a download tool: descriptions, caches of `map`, hidden files."""
    cached = file.name.startswith("cache-") and file.suffix == ".arrow"
    return file.name in BOOKKEEPING or cached or any(part.startswith((".", "__MACOSX")) for part in file.parts)


def _file_rows(path: Path, name: str, groups: Sequence[int] | None, first: int) -> Iterator[Row]:
    kind = kind_of(path)
    if kind not in FORMATS:
        cure = OTHERS.get(kind, "")
        raise RecordError(f"{path}: unknown kind of file `{kind}`{cure}; expected one of {', '.join(sorted(FORMATS))}")
    with path.open("rb") as file:
        beginning = file.read(64).lstrip().lower()
    if path.stat().st_size == 0:
        raise RecordError(f"{path}: the file is empty")
    for sign, reason in INSTEAD.items():
        if beginning.startswith(sign):
            raise RecordError(f"{path}: {reason}; expected a table")
    empty = True
    try:
        for number, raw in enumerate(FORMATS[kind](path) if groups is None else _parquet(path, groups), first):
            empty = False
            yield _row(raw, number, path, name)
    except UNREADABLE as error:
        raise RecordError(f"{path}: cannot be read as {kind} ({error})") from error
    if empty:
        raise RecordError(f"{path}: the file holds no rows")


def _row(raw: RawRow, number: int, path: Path, name: str) -> Row:
    where = f"{path} row {number}"
    broken = f"{where}: {raw.broken}" if raw.broken else ""
    if not broken and not isinstance(raw.value, Mapping):
        broken = f"{where}: found {shown(raw.value)}; expected an object with named columns"
    return Row(Columns({} if broken else raw.value), where, f"{name}:{number}", path.parent, broken, raw.line)


def _parquet(path: Path, groups: Sequence[int] | None = None) -> Iterator[RawRow]:
    with pq.ParquetFile(path, pre_buffer=False) as file:  # else all of the file that was read stays in memory
        for batch in file.iter_batches(batch_size=BATCH, row_groups=groups):
            yield from map(RawRow, _values(batch))


def _arrow(path: Path) -> Iterator[RawRow]:
    """Yield the rows of both Arrow layouts: the stream that `datasets` writes, and the file with a footer."""
    with pa.memory_map(str(path)) as source:
        if source.read(6) == b"ARROW1":
            file = pa.ipc.open_file(source)
            batches = (file.get_batch(i) for i in range(file.num_record_batches))
        else:
            source.seek(0)
            batches = iter(pa.ipc.open_stream(source))
        for batch in batches:
            for start in range(0, batch.num_rows, BATCH):
                yield from map(RawRow, _values(batch.slice(start, BATCH)))


def _values(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    """Return rows as Python values; a column that Python cannot hold, such as times after the year 9999, as texts or not at all."""
    try:
        return batch.to_pylist()
    except (ValueError, OverflowError, pa.ArrowException):
        columns: dict[str, list[Any]] = {}
        for name, column in zip(batch.schema.names, batch.columns, strict=True):
            try:
                columns[name] = column.to_pylist()
            except (ValueError, OverflowError, pa.ArrowException):
                columns[name] = [None] * batch.num_rows
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


FORMATS: dict[str, Callable[[Path], Iterator[RawRow]]] = {
    ".parquet": _parquet,
    ".arrow": _arrow,
    ".json": json_rows,
    ".jsonl": json_line_rows,
    ".ndjson": json_line_rows,
    ".csv": delimited_rows,
    ".tsv": delimited_rows,
    ".tar": webdataset_rows,
    ".tgz": webdataset_rows,
}
FORMATS |= {f"{suffix}.gz": FORMATS[suffix] for suffix in COMPRESSED}


def _hub_rows(name: str, split: str | None, skip: int) -> Iterator[Row]:
    from datasets import load_dataset  # takes a second to import, and only hub ids need it

    try:
        dataset = load_dataset(name, split=split or "train", streaming=True)
    except Exception as error:  # the hub client raises dozens of kinds, and each means that the dataset cannot be read
        raise RecordError(f"{name}: neither a local path nor a hub dataset that loads ({type(error).__name__}: {error})") from error
    yield from _dataset_rows(dataset, name, skip)


def _dataset_rows(dataset: Any, name: str, skip: int) -> Iterator[Row]:
    """Yield the rows of a dataset of `datasets` from number `skip` on; pictures stay as they are encoded."""
    number = skip
    try:
        for column, feature in (dataset.features or {}).items():
            if type(feature).__name__ == "Image":
                dataset = dataset.cast_column(column, type(feature)(decode=False))
        for number, value in enumerate(dataset.skip(skip) if skip else dataset, skip):
            yield Row(Columns(value), f"{name} row {number}", f"{name}:{number}")
    except RecordError:
        raise
    except Exception as error:  # as above, and of what a stream of the hub fetches as it is read
        raise RecordError(f"{name}: cannot be read, from row {number} on ({type(error).__name__}: {error})") from error
