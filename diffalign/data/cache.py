"""Arrays on disk beside a table, filled row by row: latents, prompt embeddings and anything else that is computed once.

The folder of a cache holds a fingerprint of what it was computed from, and a cache of anything else is refused. A row has a checksum when
its values are on disk, so a run continues a cache that a killed run left, other transforms of the same table reuse its rows, and a row
that was damaged later is not read. One run at a time fills a folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import math
import os
import shutil
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub.utils import WeakFileLock

from diffalign.core.documents import read_mapping
from diffalign.core.errors import TableError
from diffalign.core.files import write
from diffalign.core.processes import process_state

logger = logging.getLogger(__name__)
BFLOAT16 = "bfloat16"
SIZES = {"float32": 4, BFLOAT16: 2}  # bytes of a number, by precision
BLOCK = 4096  # bytes: what file systems keep together


def fingerprint(facts: dict[str, Any]) -> str:
    """Return a hash of `facts` (plain values)."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


class Bank:
    """An array (rows, *shape) in a file of `folder`, with a checksum for each row that is filled.

    Zeros take no room on the disk: the padding of prompts is a hole in the file. Rows of dtype bfloat16, which numpy lacks, are kept as the
    upper half of float32, rounded to even, and read as float32.
    """

    def __init__(self, folder: Path, name: str, rows: int, shape: tuple[int, ...], dtype: str) -> None:
        self.folder, self.name, self.dtype = folder, name, dtype
        values, checks = folder / f"{name}.npy", folder / f"{name}.checks.npy"
        with WeakFileLock(folder / ".arrays.lock"):  # processes of a launch open it at the same moment
            before = values.stat().st_size if values.exists() else None
            if before is None:
                checks.unlink(missing_ok=True)  # or old checksums would be those of rows of zeros
            self._values = _open(values, (max(rows, 1), *shape), "uint16" if dtype == BFLOAT16 else dtype)  # an empty file cannot be mapped
            self._checks = _open(checks, (max(rows, 1),), "uint32", holes=False)  # all are read, which a full disk refuses of holes
            if before is not None and values.stat().st_size > before:  # numpy makes a file that is cut off as long as it was, with zeros
                logger.warning("%s was cut off: %s", values, self._forget_damaged())

    def __reduce__(self) -> tuple[type[Bank], tuple[Any, ...]]:
        rows, *shape = self._values.shape
        return Bank, (self.folder, self.name, rows, tuple(shape), self.dtype)  # pickling a memory map would copy it

    @property
    def row_bytes(self) -> int:
        """Return the bytes of a row, its zeros as well."""
        return self._values.nbytes // len(self._values)

    @property
    def number_bytes(self) -> int:
        """Return the bytes of a number."""
        return self._values.itemsize

    def missing(self, rows: Sequence[int]) -> list[int]:
        """Return those of `rows` that are not filled yet, ascending, once each."""
        wanted = np.unique(np.asarray(rows, dtype=np.int64))
        return wanted[self._checks[wanted] == 0].tolist()

    def write(self, rows: Sequence[int], values: np.ndarray) -> None:
        """Store values (len(rows), *shape), then the rows' checksums. Raises TableError where the disk is full."""
        values = _upper_half(values) if self.dtype == BFLOAT16 else values
        values = np.ascontiguousarray(np.broadcast_to(values, (len(rows), *self._values.shape[1:])), dtype=self._values.dtype)
        _write(self._values, rows, values)
        _write(self._checks, rows, np.array(list(map(_checksum, rows, values)), np.uint32))

    def read(self, rows: Sequence[int]) -> np.ndarray:
        """Return a copy (len(rows), *shape). Raises TableError if a row is not filled, or is no longer what was written."""
        checks = self._checks[list(rows)]
        if not checks.all():
            raise TableError(f"{self.folder}: `{self.name}` lacks rows; remove the folder and start again")
        values = _read(self._values, rows)
        if values is None or any(_checksum(row, value) != check for row, value, check in zip(rows, values, checks, strict=True)):
            raise TableError(f"{self._values.filename}: damaged: {self._forget_damaged()}; start again, and it is computed anew")
        return (values.astype(np.uint32) << 16).view(np.float32) if self.dtype == BFLOAT16 else values

    def _forget_damaged(self) -> str:
        """Take the checksums of all rows that are no longer what was written, by which they are missing again; return which they are."""
        damaged = []
        for row in np.flatnonzero(self._checks).tolist():
            values = _read(self._values, [row])
            if values is None or _checksum(row, values[0]) != self._checks[row]:
                damaged.append(row)
        _write(self._checks, damaged, np.zeros(len(damaged), np.uint32))
        return f"{len(damaged)} of {len(self._checks)} rows no longer hold what was computed" + (
            f", from row {damaged[0]} on" if damaged else ""
        )


def _checksum(row: int, values: np.ndarray) -> int:
    """Return the CRC-32 of a row at its place, which is never 0."""
    return zlib.crc32(values.tobytes(), int(row)) or 1


def _upper_half(values: np.ndarray) -> np.ndarray:
    """Return float32 values as the bits of the nearest bfloat16, of two equally near ones the even."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded)


def check_room(folder: Path, needed: int) -> None:
    """Raise TableError where the disk of a folder has less than the bytes that are needed."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise TableError(
            f"{folder}: {needed / 2**30:.3g} GiB are to be kept here, and {free / 2**30:.3g} GiB are free; make room, choose another "
            "`cache_dir`, `cache_precision` bfloat16, or `cache` off"
        )


@contextlib.contextmanager
def filling(folder: Path) -> Iterator[None]:
    """Keep other runs from filling `folder` during the block; the processes of one launch enter it together. Waits for a run that does."""
    state = process_state()
    with contextlib.ExitStack() as stack:
        if state.is_main_process:
            lock = folder / ".filling.lock"  # which a process that has died does not hold
            try:
                stack.enter_context(WeakFileLock(lock, timeout=1.0))
            except TimeoutError:
                logger.warning("%s is being filled by another run; waiting for it (if there is none, remove %s)", folder, lock)
                stack.enter_context(WeakFileLock(lock))
        state.wait_for_everyone()
        yield


def _write(array: np.memmap, rows: Sequence[int], values: np.ndarray) -> None:
    """Write rows (len(rows), ...) to the array's file and wait for the disk. Blocks of zeros where there are zeros already stay holes.

    They do not go through the memory map: on a full disk, which the file's holes do not show, that would end the process (SIGBUS).
    """
    path = Path(str(array.filename))
    try:
        # Without a buffer: it would write back what it had read between two rows, and with that undo rows of another process.
        with path.open("r+b", buffering=0) as file:
            for start, run in _runs(rows, values):
                place = array.offset + start * array.strides[0]
                file.seek(place)
                before = np.frombuffer(file.read(len(run)).ljust(len(run), b"\0"), np.uint8)
                for first, last in _with_numbers(before, run):
                    file.seek(place + first)
                    _write_all(file, run[first:last].data)
            os.fsync(file.fileno())
    except OSError as error:
        raise TableError(
            f"{path}: cannot be written ({error.strerror}); make room and start again, what was stored before is kept"
        ) from error


def _write_all(file: io.RawIOBase, data: memoryview) -> None:
    """Write all of `data`, of which a nearly full disk takes a part before it refuses the rest."""
    while data:
        data = data[file.write(data) or 0 :]


def _read(array: np.memmap, rows: Sequence[int]) -> np.ndarray | None:
    """Return rows (len(rows), ...) of the array's file, None where it ends before; through the memory map that would be a SIGBUS."""
    values = np.empty((len(rows), *array.shape[1:]), array.dtype)
    with Path(str(array.filename)).open("rb", buffering=0) as file:
        for start, run in _runs(rows, values):
            file.seek(array.offset + start * array.strides[0])
            if file.readinto(run.data) != len(run):
                return None
    return values


def _runs(rows: Sequence[int], values: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the first row of each run of rows that lie behind each other, and the run's bytes in `values`, flat, as a view."""
    if len(rows) == 0:
        return
    flat, size = values.reshape(-1).view(np.uint8), values.nbytes // len(values)
    starts = [place for place in range(len(rows)) if place == 0 or rows[place] != rows[place - 1] + 1]
    for place, end in zip(starts, [*starts[1:], len(rows)], strict=True):
        yield int(rows[place]), flat[place * size : end * size]


def _with_numbers(*images: np.ndarray) -> list[tuple[int, int]]:
    """Return where (first byte, last byte + 1) some of several images (bytes,) of a piece of a file are not zero, in whole blocks."""
    length = len(images[0])
    starts = np.arange(0, length, BLOCK)
    some = np.zeros(len(starts) + 2, np.int8)
    for image in images:
        some[1:-1] |= np.logical_or.reduceat(image, starts)
    edges = np.flatnonzero(np.diff(some)).reshape(-1, 2) * BLOCK
    return [(first, min(last, length)) for first, last in edges.tolist()]


def _open(path: Path, shape: tuple[int, ...], dtype: str, *, holes: bool = True) -> np.memmap:
    """Return the array in a file, which is made if it is not there: with holes in the place of all rows, or with room for them at once."""
    if not path.exists():
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        try:
            if holes:
                np.lib.format.open_memmap(temporary, mode="w+", dtype=dtype, shape=shape)
            else:
                with temporary.open("wb") as file:
                    np.save(file, np.zeros(shape, dtype))
            with contextlib.suppress(FileExistsError):  # another run created the file first, and both fill it
                os.link(temporary, path)
        except OSError as error:
            raise TableError(f"{path}: cannot be written ({error.strerror}); make room and start again") from error
        finally:
            temporary.unlink(missing_ok=True)
    try:
        values = np.lib.format.open_memmap(path, mode="r+")
    except ValueError as error:
        raise TableError(f"{path}: damaged ({error}); remove the folder and start again") from error
    if values.shape != shape or values.dtype != np.dtype(dtype):
        raise TableError(f"{path}: found {values.dtype} {values.shape}, expected {dtype} {shape}; remove the folder and start again")
    return values


def row_shape(shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """Return the shape of a bank's rows that can hold arrays of `shapes`: their common shape, or flat and as long as the largest."""
    return shapes[0] if len(set(shapes)) == 1 else (max(map(math.prod, shapes)),)


def packed(values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return values (N, *any) as rows of `shape`; values of another shape are flattened and padded with zeros."""
    if values.shape[1:] == shape:
        return values
    flat = values.reshape(len(values), math.prod(values.shape[1:]))
    return np.pad(flat, ((0, 0), (0, shape[0] - flat.shape[1])))


def unpacked(rows: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return the values (N, *shape) of rows that were made by `packed`."""
    return rows if rows.shape[1:] == shape else rows[:, : math.prod(shape)].reshape(len(rows), *shape)


def folder_of(root: Path, kind: str, facts: dict[str, Any]) -> Path:
    """Return the cache folder `kind`-<hash of `facts`> under `root`, whether it is there or not."""
    return root / f"{kind}-{fingerprint(facts)[:12]}"


def filled(folder: Path, name: str) -> int:
    """Return how many rows of a bank are filled, 0 where there is no such bank."""
    try:
        return int(np.count_nonzero(np.load(folder / f"{name}.checks.npy", mmap_mode="r")))
    except (OSError, ValueError):  # of a damaged one, which is named when it is opened
        return 0


def open_folder(root: Path, kind: str, facts: dict[str, Any]) -> Path:
    """Return the folder of `folder_of`, and create it if it is not there.

    Raises TableError if the folder holds a cache with another fingerprint.
    """
    key, folder = fingerprint(facts), folder_of(root, kind, facts)
    folder.mkdir(parents=True, exist_ok=True)
    manifest = folder / "manifest.json"
    with WeakFileLock(folder / ".arrays.lock"):
        if not manifest.exists():
            write({manifest: json.dumps({"fingerprint": key, **facts}, indent=2) + "\n"})
    if read_mapping(manifest, TableError).get("fingerprint") != key:
        raise TableError(f"{folder}: a cache of another table, model or size (stale fingerprint); remove the folder")
    return folder
