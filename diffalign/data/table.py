"""Preference tables on disk: a folder with `records.arrow` (memory-mapped, random access) and `manifest.json`.

A table is written under a temporary name and then renamed, so a killed process never leaves half a table.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, overload

import pyarrow as pa

from diffalign.core.documents import check_types, read_mapping
from diffalign.core.errors import RecordError, TableError, shortened
from diffalign.core.files import atomic_folder
from diffalign.core.redaction import redacted
from diffalign.data.duplicates import EarlierPairs, content_digest
from diffalign.data.records import Candidate, Message, Record

VERSION = 1
ROWS, MANIFEST = "records.arrow", "manifest.json"
CACHE = "cache"  # folder beside the rows, of latents and embeddings made from them
CONDITIONING = "conditioning_image"
CHUNK = 64  # rows of an Arrow record batch, which is the unit of random access
COUNTED = ("rows", "kind", "strict", "ties", "scores", "fingerprint", "rejected_rows", "rejected")
MANIFEST_TYPES: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("rows", "strict", "ties", "users", "rejected_rows"), (int,)),
    **dict.fromkeys(("kind", "fingerprint", "reader", "split"), (str,)),
    **dict.fromkeys(("scores", "generated", "made_with", "repeats"), (dict,)),
    **dict.fromkeys(("scorers", "rejected"), (list,)),
}
REJECTED = 1000  # rejected rows that a manifest lists at most; all of them are counted

MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
_CANDIDATE = pa.struct(
    [
        ("image", pa.large_binary()),
        ("text", pa.large_string()),
        ("scores", pa.map_(pa.string(), pa.float64())),
        ("rank", pa.float64()),
        ("model", pa.string()),
        ("uid", pa.string()),
        ("prompt", pa.string()),
        ("conditioning_image", pa.large_binary()),
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
        ("messages", MESSAGES),
        ("meta", pa.map_(pa.string(), pa.string())),
        ("conditioning_image", pa.large_binary()),
    ]
)


def _without_conditioning() -> pa.Schema:
    """Return the schema of tables that were written before records had conditioning images."""
    candidate = pa.struct([field for field in _CANDIDATE if field.name != CONDITIONING])
    fields_left = [field for field in SCHEMA if field.name != CONDITIONING]
    return pa.schema([field.with_type(pa.list_(candidate)) if field.name == "candidates" else field for field in fields_left])


FORMER = _without_conditioning()


def to_row(record: Record) -> dict[str, Any]:
    """Return `record` as a plain row of `SCHEMA`."""
    row = {name: getattr(record, name) for name in SCHEMA.names}
    row["candidates"] = [_candidate_row(candidate) for candidate in record.candidates]
    row["messages"] = [{"role": message.role, "content": message.content} for message in record.messages]
    row["meta"] = list(record.meta.items())
    return row


def _candidate_row(candidate: Candidate) -> dict[str, Any]:
    row = {field.name: getattr(candidate, field.name) for field in fields(candidate)}
    return row | {"scores": list(candidate.scores.items())}


def from_row(row: dict[str, Any]) -> Record:
    """Return the record of a plain row of `SCHEMA`."""
    candidates = tuple(Candidate(**{**c, "scores": dict(c["scores"] or ())}) for c in row["candidates"])
    messages = tuple(Message(**m) for m in row["messages"] or ())
    return Record(**{**row, "candidates": candidates, "messages": messages, "meta": dict(row["meta"] or ())})


def read_manifest(path: Path) -> dict[str, Any]:
    """Return the manifest of the table in a folder. Raises TableError for one that is damaged or of another version."""
    file = path / MANIFEST
    facts = redacted(read_mapping(file, TableError))
    if facts.get("version") != VERSION:
        raise TableError(f"{path} has table version {shortened(repr(facts.get('version')))}; expected {VERSION}")
    check_types(facts, MANIFEST_TYPES, str(file), TableError)
    if missing := [name for name in COUNTED if facts.get(name) is None]:
        raise TableError(f"{file}: has no `{missing[0]}`; expected the manifest of a preference table")
    for number, scorer in enumerate(facts.get("scorers") or ()):
        if not isinstance(scorer, dict) or not isinstance(scorer.get("name"), str):
            raise TableError(f"{file}: `scorers`, number {number}, is {shortened(repr(scorer))}; expected keys and values, with a `name`")
    for name, span in facts["scores"].items():
        if not isinstance(span, dict) or not all(type(span.get(end)) in (int, float) for end in ("min", "max")):
            raise TableError(f"{file}: `scores` of {shortened(repr(name))} is {shortened(repr(span))}; expected its `min` and `max`")
    return facts


class Table(Sequence[Record]):
    """A sequence of records on disk, with its `manifest` and `path`. A record is read when it is indexed, never all at once.

    Raises TableError if the files do not fit together or are of another version. Use `read_table`, which also explains missing and
    damaged files. `name` is what messages call the table: its path, unless it stands for another dataset.
    """

    def __init__(self, path: Path, name: str = "") -> None:
        self.path, self.name = path, name or str(path)
        self.manifest = read_manifest(path)
        self._rows, self._scattered = self.manifest["rows"], dict[str, pa.ChunkedArray]()
        self._reader = pa.ipc.open_file(pa.memory_map(str(path / ROWS)))
        if not self._reader.schema.equals(SCHEMA) and not self._reader.schema.equals(FORMER):
            raise TableError(f"{path} is damaged (the columns of {ROWS} are not those of a preference table); import the dataset again")
        chunks = self._reader.num_record_batches
        rows = (chunks - 1) * CHUNK + self._reader.get_batch(chunks - 1).num_rows if chunks else 0
        if rows != self._rows:
            raise TableError(f"{path} is damaged ({rows} rows in {ROWS}, {self._rows} in {MANIFEST}); import the dataset again")

    def __reduce__(self) -> tuple[type[Table], tuple[Path, str]]:
        return Table, (self.path, self.name)  # an open Arrow file cannot be pickled for a worker process

    def __len__(self) -> int:
        return self._rows

    @overload
    def __getitem__(self, index: int) -> Record: ...

    @overload
    def __getitem__(self, index: slice) -> list[Record]: ...

    def __getitem__(self, index: int | slice) -> Record | list[Record]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        position = index + len(self) if index < 0 else index
        if not 0 <= position < len(self):
            raise IndexError(f"row {index} of a table of {len(self)} rows")
        batch = self._reader.get_batch(position // CHUNK)
        return from_row(batch.slice(position % CHUNK, 1).to_pylist()[0])

    def __iter__(self) -> Iterator[Record]:
        for batch in self.batches():
            for row in batch.to_pylist():
                yield from_row(row)

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Yield the rows as memory-mapped Arrow batches of `SCHEMA` (or `FORMER`); only the columns that are used are read from disk."""
        for index in range(self._reader.num_record_batches):
            yield self._reader.get_batch(index)

    def scattered(self, name: str) -> pa.ChunkedArray:
        """Return one top-level column as it lies on the disk: memory-mapped, a piece a batch; a row is read when it is indexed."""
        if name not in self._scattered:
            self._scattered[name] = pa.chunked_array([batch.column(name) for batch in self.batches()], SCHEMA.field(name).type)
        return self._scattered[name]

    def column(self, name: str) -> list[Any]:
        """Return one top-level column as a list without reading the candidates."""
        return [value for batch in self.batches() for value in batch.column(name).to_pylist()]

    @property
    def fingerprint(self) -> str:
        """Return the hash of the content, from the manifest; caches beside the table are keyed by it."""
        return str(self.manifest["fingerprint"])


def _number(value: float | None) -> float | None:
    return None if value is None else float(value)


class Audit:
    """Counts and hashes the records that go into a table, and makes its manifest."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.kinds: Counter[str] = Counter()
        self.scores: dict[str, list[float]] = {}
        self.users: set[str] = set()
        self.ids: set[str] = set()
        self.digest = hashlib.sha256()
        self.pairs = EarlierPairs()
        self.repeats = Counter[str](same=0, opposite=0, disputed=0, equal=0)

    def add(self, record: Record) -> None:
        if record.id in self.ids:
            raise RecordError(f"{record.source}: another record of the table has the id `{record.id}`; ids must be unique")
        self.ids.add(record.id)
        self.kinds[record.kind] += 1
        if len(self.kinds) > 1:
            kinds = " and ".join(f"{kind}s" for kind in self.kinds)
            raise RecordError(f"{record.source}: found {kinds} in one table; expected images, texts or prompts alone")
        if record.prob is not None and len(record.candidates) > 1:
            self.counts["ties" if record.prob == 0.5 else "strict"] += 1
        if record.user is not None:
            self.users.add(record.user)
        for candidate in record.candidates:
            for name, value in candidate.scores.items():
                low, high = self.scores.setdefault(name, [float(value), float(value)])
                self.scores[name] = [min(low, float(value)), max(high, float(value))]
        digests = [content_digest(candidate) for candidate in record.candidates]
        self._compare(record, digests)
        self._fold(record, digests)

    def _compare(self, record: Record, digests: Sequence[bytes]) -> None:
        """Count what comes again: the candidates of an earlier record, or one candidate within the record."""
        if len({(digest, c.prompt) for digest, c in zip(digests, record.candidates, strict=True)}) < len(digests):
            self.repeats["equal"] += 1
        elif len(digests) > 1 and (repeat := self.pairs.compare(record, digests)) is not None:
            self.repeats[repeat.kind] += 1

    def _fold(self, record: Record, digests: Sequence[bytes]) -> None:
        """Add to the hash everything that a model or an objective may use; provenance is left out, so a moved file has the same hash."""
        for candidate, digest in zip(record.candidates, digests, strict=True):
            self.digest.update(digest)
            scores = sorted((name, float(value)) for name, value in candidate.scores.items())
            self.digest.update(repr((scores, _number(candidate.rank), candidate.prompt)).encode())
        turns = [(message.role, message.content) for message in record.messages]
        self.digest.update(repr((record.id, record.prompt, _number(record.prob), record.user, turns)).encode())
        if record.conditioning_image is not None:  # tables without any keep their hash
            self.digest.update(hashlib.sha256(record.conditioning_image).digest())
        for name in ("weight", "rationale"):  # which training reads; tables without the columns keep their hash
            self.digest.update(record.meta.get(name, "").encode())

    def manifest(self) -> dict[str, Any]:
        return {
            "version": VERSION,
            "rows": self.kinds.total(),
            "kind": next(iter(self.kinds), "image"),
            "strict": self.counts["strict"],
            "ties": self.counts["ties"],
            "users": len(self.users),
            "repeats": dict(self.repeats),
            "scores": {name: {"min": low, "max": high} for name, (low, high) in sorted(self.scores.items())},
            "fingerprint": self.digest.hexdigest()[:32],
        }


def write_table(
    path: str | Path,
    records: Iterable[Record],
    *,
    rejected: Sequence[dict[str, str]] = (),
    overwrite: bool = False,
    **manifest: Any,
) -> Table:
    """Write `records` to a preference table and return it, opened.

    Args:
        path: folder of the table.
        records: any iterable of records, all of images, all of texts or all of prompts alone, with unique ids.
        rejected: rows that could not be read, as {"where", "reason"}; looked at after the last record, so `records` may append to it.
        overwrite: replace a table at `path`; a folder that is not a table is never replaced.
        manifest: further keys for the manifest, such as the source of the records.

    Raises TableError if `path` exists and may not be replaced, if there is no record, or if a key of `manifest` is one that is counted
    here; RecordError if a record is not valid, is of another kind than the first, or repeats an id.

    Example:
        >>> pair = Candidate(image=Path("a.png").read_bytes()), Candidate(image=Path("b.png").read_bytes())  # doctest: +SKIP
        >>> write_table("outputs/mine", [Record("0", "a red star", pair, prob=1.0)])  # doctest: +SKIP
    """
    path, audit = Path(path), Audit()
    check_free(path, overwrite)
    with atomic_folder(path) as folder:
        write_rows(folder / ROWS, records, audit)
        facts = counted(audit, rejected, manifest, path) | manifest
        (folder / MANIFEST).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
        keep_caches(path, folder)
    return Table(path)


def write_rows(file: Path, records: Iterable[Record], audit: Audit, before: Iterable[pa.RecordBatch] = ()) -> None:
    """Write the file of a table's rows: whole batches of an earlier file, and `records`; all of them are added to the audit."""
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, SCHEMA) as writer:
        for batch in before:
            for row in batch.to_pylist():
                audit.add(from_row(row))
            writer.write_batch(batch)
        for chunk in _chunks(records, CHUNK):
            for record in chunk:
                audit.add(record.check())
            writer.write_batch(pa.RecordBatch.from_pylist([to_row(r) for r in chunk], schema=SCHEMA))


def counted(audit: Audit, rejected: Sequence[dict[str, str]], manifest: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Return the counts of a manifest. Raises TableError where no record was written, and for a key of `manifest` that is counted here."""
    facts = audit.manifest()
    if not facts["rows"]:
        reason = f"; first of {len(rejected)} rejected: {rejected[0]['reason']}" if rejected else ""
        raise TableError(f"{manifest.get('dataset_name', path)}: there is no record to write{reason}")
    facts |= {"rejected_rows": len(rejected), "rejected": list(rejected)[:REJECTED]}
    if clash := sorted(facts.keys() & manifest.keys()):
        raise TableError(f"{path}: the manifest's `{clash[0]}` is counted from the records; choose another name for the key")
    return facts


def keep_caches(earlier: Path, path: Path) -> None:
    """Give the table at `path` the caches of an `earlier` one, as links to the same files, if both have the same content."""
    if not (earlier / CACHE).is_dir() or (path / CACHE).exists() or _fingerprint(earlier) != _fingerprint(path):
        return
    try:
        shutil.copytree(earlier / CACHE, path / CACHE, copy_function=os.link)
    except OSError:  # a file system without links: they are made again
        shutil.rmtree(path / CACHE, ignore_errors=True)


def _fingerprint(path: Path) -> str | None:
    """Return the fingerprint in the manifest of a table that may be damaged."""
    try:
        return json.loads((path / MANIFEST).read_text(encoding="utf-8"))["fingerprint"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def check_free(path: Path, overwrite: bool) -> None:
    """Raise TableError where a table may not be written: at a folder that is none, or at a table without `overwrite`."""
    if path.exists() and not is_table(path):
        raise TableError(
            f"{path} exists and is not a preference table (it lacks {MANIFEST} or {ROWS}), so it is not replaced; choose another folder"
        )
    if path.exists() and not overwrite:
        raise TableError(f"{path} exists already; choose another folder, or overwrite it with --overwrite")


def read_table(path: str | Path) -> Table:
    """Return the table in a folder.

    Args:
        path: folder that `write_table` or `diffalign data import` has written.

    Raises TableError if the table is missing, damaged or of another version.

    Example:
        >>> table = read_table("outputs/mine")  # doctest: +SKIP
        >>> len(table), table[0].prompt  # doctest: +SKIP
        (1, 'a red star')
    """
    path = Path(path)
    missing = [name for name in (ROWS, MANIFEST) if not (path / name).is_file()]
    if missing:
        raise TableError(f"{path} is not a preference table: it has no {missing[0]}. Make one with `diffalign data import`.")
    try:
        return Table(path)
    except (pa.ArrowException, ValueError, KeyError, TypeError, OSError) as error:
        raise TableError(f"{path} is damaged ({error}); import the dataset again") from error


def is_table(path: str | Path) -> bool:
    """Return whether `path` is a folder with the files of a preference table."""
    try:
        return (Path(path) / MANIFEST).is_file() and (Path(path) / ROWS).is_file()
    except OSError:  # a name that is too long, or a folder that may not be looked into
        return False


def _chunks(records: Iterable[Record], size: int) -> Iterator[list[Record]]:
    chunk: list[Record] = []
    for record in records:
        chunk.append(record)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
