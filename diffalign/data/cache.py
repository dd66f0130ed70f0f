"""Arrays on disk beside a table, filled row by row: latents, prompt embeddings and anything else that is computed once.

The folder of a cache holds a fingerprint of what it was computed from, and a cache of anything else is refused. A row is flagged when
its values are on disk, so a run continues a cache that a killed run left, and other transforms of the same table reuse its rows.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub.utils import WeakFileLock

from diffalign.core.documents import read_mapping
from diffalign.core.errors import TableError
from diffalign.core.files import write

BFLOAT16 = "bfloat16"


def fingerprint(facts: dict[str, Any]) -> str:
    """Return a hash of `facts` (plain values)."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


class Bank:
    """A memory-mapped array (rows, *shape) in `folder`, with a flag for each row that says whether it is filled.

    Rows of dtype bfloat16, which numpy lacks, are kept as the upper half of float32, rounded to even, and read as float32.
    """

    def __init__(self, folder: Path, name: str, rows: int, shape: tuple[int, ...], dtype: str) -> None:
        self.folder, self.name, self.dtype = folder, name, dtype
        values, filled = folder / f"{name}.npy", folder / f"{name}.filled.npy"
        with WeakFileLock(folder / ".arrays.lock"):  # processes of a launch open it at the same moment
            if not values.exists():
                filled.unlink(missing_ok=True)  # or old flags would mark rows of zeros as filled
            self._values = _open(values, (max(rows, 1), *shape), "uint16" if dtype == BFLOAT16 else dtype)  # an empty file cannot be mapped
            self._filled = _open(filled, (max(rows, 1),), "bool", holes=False)  # all are read, which a full disk refuses of holes

    def __reduce__(self) -> tuple[type[Bank], tuple[Any, ...]]:
        rows, *shape = self._values.shape
        return Bank, (self.folder, self.name, rows, tuple(shape), self.dtype)  # pickling a memory map would copy it

    @property
    def row_bytes(self) -> int:
        """Return the bytes of a row."""
        return self._values.nbytes // len(self._values)

    def missing(self, rows: Sequence[int]) -> list[int]:
        """Return those of `rows` that are not filled yet, ascending, once each."""
        wanted = np.unique(np.asarray(rows, dtype=np.int64))
        return wanted[~self._filled[wanted]].tolist()

    def write(self, rows: Sequence[int], values: np.ndarray) -> None:
        """Store values (len(rows), *shape), then flag the rows as filled. Raises TableError where the disk is full."""
        _write(self._values, rows, _upper_half(values) if self.dtype == BFLOAT16 else values)
        _write(self._filled, rows, np.ones(len(rows), dtype=bool))

    def read(self, rows: Sequence[int]) -> np.ndarray:
        """Return a copy (len(rows), *shape). Raises TableError if a row is not filled."""
        if not self._filled[list(rows)].all():
            raise TableError(f"{self.folder}: `{self.name}` lacks rows; remove the folder and start again")
        values = np.array(self._values[list(rows)])
        return (values.astype(np.uint32) << 16).view(np.float32) if self.dtype == BFLOAT16 else values


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


def _write(array: np.memmap, rows: Sequence[int], values: np.ndarray) -> None:
    """Write rows to the array's file and wait for the disk.

    They do not go through the memory map: on a full disk, which the file's holes do not show, that would end the process (SIGBUS).
    """
    values = np.ascontiguousarray(np.broadcast_to(values, (len(rows), *array.shape[1:])), dtype=array.dtype)
    path = Path(str(array.filename))
    try:
        with path.open("r+b") as file:
            for row, value in zip(rows, values, strict=True):
                file.seek(array.offset + int(row) * value.nbytes)
                file.write(value.tobytes())
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise TableError(
            f"{path}: cannot be written ({error.strerror}); make room and start again, what was stored before is kept"
        ) from error


def _open(path: Path, shape: tuple[int, ...], dtype: str, *, holes: bool = True) -> np.memmap:
    """Return the array in a file, which is made if it is not there: with room for all rows at once, or with holes in their place."""
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


def open_folder(root: Path, kind: str, facts: dict[str, Any]) -> Path:
    """Return the cache folder `kind`-<hash of `facts`> under `root`, and create it if it is not there.

    Raises TableError if the folder holds a cache with another fingerprint.
    """
    key = fingerprint(facts)
    folder = root / f"{kind}-{key[:12]}"
    folder.mkdir(parents=True, exist_ok=True)
    manifest = folder / "manifest.json"
    if not manifest.exists():
        write({manifest: json.dumps({"fingerprint": key, **facts}, indent=2) + "\n"})
    if read_mapping(manifest, TableError).get("fingerprint") != key:
        raise TableError(f"{folder}: a cache of another table, model or size (stale fingerprint); remove the folder")
    return folder
