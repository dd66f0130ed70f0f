"""Preference tables on disk: a folder with `records.arrow` (memory-mapped, random access) and `manifest.json`.

Written under a temporary name and renamed, so that a table is there whole or not at all.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa

from diffalign.data.records import Candidate, Message, Record
from diffalign.errors import RecordError, TableError

VERSION = 1
ROWS, MANIFEST = "records.arrow", "manifest.json"
CHUNK = 64  # rows in a record batch: what one random access maps

_MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
_CANDIDATE = pa.struct(
    [
        ("image", pa.large_binary()),
        ("text", pa.large_string()),
        ("scores", pa.map_(pa.string(), pa.float64())),
        ("rank", pa.float64()),
        ("model", pa.string()),
        ("uid", pa.string()),
        ("prompt", pa.string()),
    ]
)
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("prompt", pa.string()),
        ("candidates", pa.list_(_CANDIDATE)),
        ("prob", pa.float64()),
        ("user", pa.string()),
        ("source", pa.string()),
        ("messages", _MESSAGES),
        ("meta", pa.map_(pa.string(), pa.string())),
    ]
)


def to_row(record: Record) -> dict[str, Any]:
    """Return `record` as a plain row of `SCHEMA`."""
    row = asdict(record)
    row["meta"] = list(record.meta.items())
    for plain, candidate in zip(row["candidates"], record.candidates, strict=True):
        plain["scores"] = list(candidate.scores.items())
    return row


def from_row(row: dict[str, Any]) -> Record:
    """Return the record of a plain row of `SCHEMA`."""
    candidates = tuple(Candidate(**{**c, "scores": dict(c["scores"] or ())}) for c in row["candidates"])
    messages = tuple(Message(**m) for m in row["messages"] or ())
    return Record(**{**row, "candidates": candidates, "messages": messages, "meta": dict(row["meta"] or ())})


class Table(Sequence[Record]):
    """Records on disk by position; also `manifest`, `path` and `by_id`. Rows are read when asked for, never all at once."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.manifest: dict[str, Any] = json.loads((path / MANIFEST).read_text())
        self._reader = pa.ipc.open_file(pa.memory_map(str(path / ROWS)))
        self._rows = int(self.manifest["rows"])

    def __len__(self) -> int:
        return self._rows

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        position = index + len(self) if index < 0 else index
        if not 0 <= position < len(self):
            raise IndexError(f"row {index} of a table of {len(self)} rows")
        batch = self._reader.get_batch(position // CHUNK)
        return from_row(batch.slice(position % CHUNK, 1).to_pylist()[0])

    def __iter__(self) -> Iterator[Record]:
        for index in range(self._reader.num_record_batches):
            for row in self._reader.get_batch(index).to_pylist():
                yield from_row(row)

    def column(self, name: str) -> list[Any]:
        """Return one top-level column as a list without reading the candidates."""
        batches = (self._reader.get_batch(i) for i in range(self._reader.num_record_batches))
        return [value for batch in batches for value in batch.column(name).to_pylist()]

    @property
    def fingerprint(self) -> str:
        """The content's hash, as written in the manifest; caches beside the table are keyed by it."""
        return str(self.manifest["fingerprint"])


class _Audit:
    """Counts what goes into a table."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.scores: dict[str, list[float]] = {}
        self.users: set[str] = set()
        self.ids: set[str] = set()
        self.digest = hashlib.sha256()

    def add(self, record: Record) -> None:
        if record.id in self.ids:
            raise RecordError(f"{record.source}: id `{record.id}` stands in the table already; ids must be unique")
        self.ids.add(record.id)
        kind = "image" if record.is_image else "text"
        self.counts[kind] += 1
        if len({name for name in ("image", "text") if self.counts[name]}) > 1:
            raise RecordError(f"{record.source}: a table holds images or texts, not both")
        if record.prob is not None:
            self.counts["ties" if record.prob == 0.5 else "strict"] += 1
        if record.user is not None:
            self.users.add(record.user)
        for candidate in record.candidates:
            for name, value in candidate.scores.items():
                low, high = self.scores.setdefault(name, [value, value])
                self.scores[name] = [min(low, value), max(high, value)]
            self.digest.update(hashlib.sha256(candidate.image or (candidate.text or "").encode()).digest())
        self.digest.update(repr((record.id, record.prompt, record.prob, record.user)).encode())

    def manifest(self) -> dict[str, Any]:
        return {
            "version": VERSION,
            "rows": self.counts["image"] + self.counts["text"],
            "kind": "text" if self.counts["text"] else "image",
            "strict": self.counts["strict"],
            "ties": self.counts["ties"],
            "users": len(self.users),
            "scores": {name: {"min": low, "max": high} for name, (low, high) in sorted(self.scores.items())},
            "fingerprint": self.digest.hexdigest()[:32],
        }


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Give a temporary folder beside `path` that takes its name on success and vanishes on an error; replaces an old one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        shutil.rmtree(path, ignore_errors=True)
        temporary.replace(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_table(
    path: str | Path,
    records: Iterable[Record],
    *,
    rejected: Sequence[dict[str, str]] = (),
    overwrite: bool = False,
    **manifest: Any,
) -> Table:
    """Write `records` to the folder `path` and return the table, opened.

    `rejected` (read after the last record, so a reader may still fill it) and any further keywords go into the manifest.
    Raises TableError if `path` exists and `overwrite` is not set, or if nothing is left to write.
    """
    path = Path(path)
    if path.exists() and not overwrite:
        raise TableError(f"{path} exists already; choose another folder, or overwrite it with --overwrite")
    if path.exists() and not (path / MANIFEST).exists():
        raise TableError(f"{path} is not a preference table (it has no {MANIFEST}); it is left alone")
    audit = _Audit()
    with atomic_folder(path) as folder:
        with pa.OSFile(str(folder / ROWS), "wb") as sink, pa.ipc.new_file(sink, SCHEMA) as writer:
            for chunk in _chunks(records, CHUNK):
                for record in chunk:
                    audit.add(record.check())
                writer.write_batch(pa.RecordBatch.from_pylist([to_row(r) for r in chunk], schema=SCHEMA))
        facts = audit.manifest()
        if not facts["rows"]:
            reason = f"; first of {len(rejected)} rejected: {rejected[0]['reason']}" if rejected else ""
            raise TableError(f"{path}: no record is left to write{reason}")
        facts |= manifest | {"rejected_rows": len(rejected), "rejected": list(rejected)[:1000]}
        (folder / MANIFEST).write_text(json.dumps(facts, indent=2) + "\n")
    return Table(path)


def read_table(path: str | Path) -> Table:
    """Return the table in folder `path`. Raises TableError if it is missing, damaged or of another version."""
    path = Path(path)
    missing = [name for name in (ROWS, MANIFEST) if not (path / name).is_file()]
    if missing:
        raise TableError(f"{path} is not a preference table: it has no {missing[0]}. Make one with `diffalign data import`.")
    try:
        table = Table(path)
    except (pa.ArrowInvalid, json.JSONDecodeError, KeyError, OSError) as error:
        raise TableError(f"{path} is damaged ({error}); import the dataset again") from error
    if table.manifest.get("version") != VERSION:
        raise TableError(f"{path} has table version {table.manifest.get('version')}; expected {VERSION}")
    return table


def is_table(path: str | Path) -> bool:
    """Return whether `path` is a folder that `write_table` made."""
    return (Path(path) / MANIFEST).is_file() and (Path(path) / ROWS).is_file()


def _chunks(records: Iterable[Record], size: int) -> Iterator[list[Record]]:
    chunk: list[Record] = []
    for record in records:
        chunk.append(record)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
