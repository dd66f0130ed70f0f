"""What all readers share: opening files, folders and hub datasets as rows, and turning rows into records one by one.

A reader is two functions: `rows(path)` yields `Row`s, and `parse(row)` turns one into a record or raises RecordError. `read` joins
them: the error of a bad row names its file and number, and a bad row can be skipped and listed while the rows after it are still read.
"""

from __future__ import annotations

import collections
import csv
import gzip
import json
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from diffalign.core.errors import RecordError, did_you_mean
from diffalign.data.records import Record, check_images

CSV_LIMIT = 2**27  # characters in one field of a CSV file, which may be a whole story
BATCH = 64  # rows held as Python objects at a time; a `save_to_disk` file may hold a thousand images in one record batch
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
BOOKKEEPING = ("dataset_info.json", "state.json", "dataset_dict.json")  # what `save_to_disk` writes beside the rows


@dataclass(frozen=True, slots=True)
class Row:
    """One raw row: its columns, its place ('votes.csv row 3'), and the folder that relative paths in it start from."""

    value: Mapping[str, Any]
    where: str
    id: str  # short and unique in the dataset: 'votes.csv:3'
    folder: Path = Path()
    broken: str = ""  # why the row cannot be read at all; raised when a column is read, so that `read` can skip the row

    def get(self, name: str, kind: type | tuple[type, ...] = object, *, aliases: tuple[str, ...] = ()) -> Any:
        """Return column `name` (or the first alias present). Raises RecordError if it is missing, null or of another type."""
        if self.broken:
            raise RecordError(self.broken)
        for key in (name, *aliases):
            if key in self.value:
                return self._checked(key, kind)
        raise RecordError(f"{self.where}: no column `{name}`.{did_you_mean(name, map(str, self.value))}")

    def _checked(self, key: str, kind: type | tuple[type, ...]) -> Any:
        value = self.value[key]
        kinds = kind if isinstance(kind, tuple) else (kind,)
        if float in kinds:
            kinds += (int,)
        if value is None or not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds and kind is not object):
            expected = " or ".join(k.__name__ for k in kinds)
            raise RecordError(f"{self.where}: column `{key}` is {_short(value)}; expected {expected}")
        return value

    def text(self, name: str, *, aliases: tuple[str, ...] = ()) -> str:
        """Return a text column."""
        return self.get(name, str, aliases=aliases)

    def number(self, name: str, *, aliases: tuple[str, ...] = ()) -> float:
        """Return a number; CSV text is parsed."""
        return self._number(self.get(name, (float, str), aliases=aliases), name)

    def numbers(self, name: str, length: int) -> list[float]:
        """Return a list column of exactly `length` numbers."""
        values = self.get(name, list)
        if len(values) != length:
            raise RecordError(f"{self.where}: column `{name}` has {len(values)} entries; expected {length}, one an image")
        return [self._number(value, name) for value in values]

    def _number(self, value: Any, name: str) -> float:
        try:
            return float(value)
        except (TypeError, ValueError) as error:
            raise RecordError(f"{self.where}: column `{name}` holds {_short(value)}; expected a number") from error

    def optional(self, name: str, *, aliases: tuple[str, ...] = ()) -> str | None:
        """Return a column as text, or None where it is missing, null or empty (CSV has no null)."""
        value = next((self.value[key] for key in (name, *aliases) if key in self.value), None)
        return None if value in (None, "") else str(value)

    def image(self, name: str, *, aliases: tuple[str, ...] = ()) -> bytes:
        """Return an image column as encoded bytes: raw bytes, the datasets struct {bytes, path}, or a path beside the file."""
        return self.encoded(self.get(name, (bytes, dict, str), aliases=aliases), name)

    def encoded(self, value: Any, name: str, *, under: Sequence[str] = (".",)) -> bytes:
        """Return one value of column `name` as encoded image bytes; a path is looked for in each subfolder `under` in turn."""
        if isinstance(value, Mapping):
            value = value.get("bytes") or value.get("path")
        if isinstance(value, bytes) and value:
            return value
        if not isinstance(value, str) or not value:
            raise RecordError(f"{self.where}: column `{name}` holds {_short(value)}; expected image bytes or a path")
        return self.file(value, under=under)

    def file(self, relative: str, *, under: Sequence[str] = (".",)) -> bytes:
        """Return the bytes of a file named in this row. Raises RecordError if it is not there."""
        paths = [self.folder / sub / relative for sub in under]
        try:
            for path in paths:
                if path.is_file():
                    return path.read_bytes()
        except OSError as error:  # a text in the place of a path is too long for a file name
            raise RecordError(f"{self.where}: the image {_short(relative)} cannot be read ({error.strerror})") from error
        raise RecordError(f"{self.where}: there is no image {' or '.join(map(str, paths))}")


def _short(value: Any) -> str:
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) < 60 else text[:57] + '...'}"


@dataclass(frozen=True, slots=True)
class Reader:
    """One dataset layout: how its rows are opened, how a row becomes a record, and by what the layout is recognised."""

    rows: Callable[[str, str | None], Iterator[Row]]  # (path or hub id, split)
    parse: Callable[[Row], Record]
    columns: tuple[str, ...] = ()  # which a row must have for the layout to be detected; "a|b" means either
    about: str = ""  # one line for the list of layouts
    matches: Callable[[Row], bool] | None = None  # a look at a row's values, where column names alone do not tell layouts apart
    candidates: bool = True  # whether a record without candidates is an error


def read(
    reader: Reader, source: str, *, split: str | None = None, rejected: list[dict[str, str]] | None = None, verify_images: bool = True
) -> Iterator[Record]:
    """Yield the records of `source`. A bad row raises RecordError, or with a list `rejected` is appended to it as {where, reason}."""
    for row in reader.rows(source, split):
        try:
            record = reader.parse(row).check()
            if reader.candidates and not record.candidates:
                raise RecordError(f"{record.source}: no candidates; expected at least one image or text")
            yield check_images(record) if verify_images else record
        except RecordError as error:
            if rejected is None:
                raise
            rejected.append({"where": row.where, "reason": str(error)})


def open_rows(source: str, split: str | None = None) -> Iterator[Row]:
    """Yield the rows of a dataset file, of a folder of such files (also one made by `save_to_disk`), or of a hub dataset, streamed.

    Files are parquet, arrow, JSON, JSONL, CSV or TSV. `split` selects the files of a folder, or the split of a hub dataset, by name; a
    single file is read whole. Raises RecordError if nothing can be opened.
    """
    path = Path(source).expanduser()
    if path.is_file():
        yield from _file_rows(path, path.name)
    elif path.is_dir():
        yield from _folder_rows(path, split)
    elif _looks_like_path(source):
        raise RecordError(f"{source}: there is no such file or folder; expected a dataset file, a folder or a hub id like `owner/name`")
    else:
        yield from _hub_rows(source, split)


def _looks_like_path(source: str) -> bool:
    return source.startswith((".", "/", "~")) or source.count("/") != 1 or _kind(Path(source)) in FORMATS


def _kind(path: Path) -> str:
    """Return the suffix of a file's name: `.jsonl`, or `.jsonl.gz` if it is compressed."""
    return "".join(path.suffixes[-2:]) if path.suffix == ".gz" else path.suffix


def _folder_rows(path: Path, split: str | None) -> Iterator[Row]:
    files = sorted(f for f in path.rglob("*") if _kind(f) in FORMATS and not _is_bookkeeping(f.relative_to(path)))
    if split is not None:
        stems = {f: f.name.removesuffix(_kind(f)) for f in files}
        files = [f for f in files if split in (stems[f], stems[f].split("-")[0], *f.relative_to(path).parts)]
    if not files:
        wanted = f" of split `{split}`" if split else ""
        raise RecordError(f"{path}: no dataset file{wanted}; expected one of {', '.join(sorted(FORMATS))}")
    for file in files:
        yield from _file_rows(file, file.relative_to(path).as_posix())


def _is_bookkeeping(file: Path) -> bool:
    """Return whether `file` holds no rows but was left by `datasets` or a download tool: descriptions, caches of `map`, hidden files."""
    cached = file.name.startswith("cache-") and file.suffix == ".arrow"
    return file.name in BOOKKEEPING or cached or any(part.startswith(".") for part in file.parts)


def _file_rows(path: Path, name: str) -> Iterator[Row]:
    kind = _kind(path)
    if kind not in FORMATS:
        raise RecordError(f"{path}: unknown kind of file `{kind}`; expected one of {', '.join(sorted(FORMATS))}")
    if path.stat().st_size == 0:
        raise RecordError(f"{path}: the file is empty")
    empty = True
    try:
        for number, value in enumerate(FORMATS[kind](path)):
            empty = False
            where, broken = f"{path} row {number}", ""
            if not isinstance(value, Mapping):
                broken = f"{where}: found {_short(value)}; expected an object with named columns"
                value = {}
            elif None in value:  # where DictReader puts fields beyond the header
                broken = f"{where}: {len(value[None])} fields more than the header names; expected quotes around text that holds commas"
            yield Row(value, where, f"{name}:{number}", path.parent, broken)
    except (pa.ArrowException, json.JSONDecodeError, UnicodeDecodeError, csv.Error, zlib.error, EOFError, OSError) as error:
        raise RecordError(f"{path}: cannot be read as {kind} ({error})") from error
    if empty:
        raise RecordError(f"{path}: the file holds no rows")


def _parquet(path: Path) -> Iterator[dict[str, Any]]:
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=BATCH):
            yield from batch.to_pylist()


def _arrow(path: Path) -> Iterator[dict[str, Any]]:
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
                yield from batch.slice(start, BATCH).to_pylist()


def _json(path: Path) -> Iterator[Any]:
    value = json.loads(path.read_text(encoding="utf-8-sig"))
    if isinstance(value, Mapping) and "data" in value and isinstance(value["data"], list):
        value = value["data"]
    if not isinstance(value, list):
        raise RecordError(f"{path}: found a JSON {type(value).__name__}; expected a list of rows")
    yield from value


def _jsonl(path: Path) -> Iterator[Any]:
    """Yield one value per line; a line that is not JSON yields its error, so that the lines after it are still read."""
    with gzip.open(path, "rt", encoding="utf-8-sig") if path.suffix == ".gz" else path.open(encoding="utf-8-sig") as lines:
        for line in lines:
            if line.strip():
                try:
                    yield json.loads(line)
                except json.JSONDecodeError as error:
                    yield error


def _csv(path: Path) -> Iterator[dict[str, Any]]:
    csv.field_size_limit(CSV_LIMIT)
    tabs = path.suffix == ".tsv"
    quoting = csv.QUOTE_MINIMAL if not tabs or _is_quoted(path) else csv.QUOTE_NONE
    with path.open(encoding="utf-8-sig", newline="") as lines:
        yield from csv.DictReader(lines, delimiter="\t" if tabs else ",", quoting=quoting)


def _is_quoted(path: Path) -> bool:
    """Return whether quotes in a TSV file enclose fields, as pandas writes them. TSV itself has no quoting: there `"a" b` is one field."""
    with path.open(encoding="utf-8-sig", newline="") as lines:
        try:
            collections.deque(csv.reader(lines, delimiter="\t", strict=True), maxlen=0)
        except csv.Error:
            return False
    return True


FORMATS: dict[str, Callable[[Path], Iterator[Any]]] = {
    ".parquet": _parquet,
    ".arrow": _arrow,
    ".json": _json,
    ".jsonl": _jsonl,
    ".jsonl.gz": _jsonl,
    ".csv": _csv,
    ".tsv": _csv,
}


def _hub_rows(name: str, split: str | None) -> Iterator[Row]:
    from datasets import load_dataset  # takes a second to import, and only hub ids need it

    try:
        dataset = load_dataset(name, split=split or "train", streaming=True)
        features = dataset.features or {}
        for column, feature in features.items():
            if type(feature).__name__ == "Image":
                dataset = dataset.cast_column(column, type(feature)(decode=False))
        for number, value in enumerate(dataset):
            yield Row(value, f"{name} row {number}", f"{name}:{number}")
    except RecordError:
        raise
    except Exception as error:  # the hub client raises dozens of kinds, and each means that the dataset cannot be read
        raise RecordError(f"{name}: neither a local path nor a hub dataset that loads ({type(error).__name__}: {error})") from error
