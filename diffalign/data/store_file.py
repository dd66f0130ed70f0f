"""The SQLite file of a vote store: one connection that writes, and one that reads meanwhile, for all threads of a process."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

from diffalign.core.errors import TableError
from diffalign.data import store_schema as sql

BUSY_SECONDS = 10.0  # how long a writer waits for another one


class StoreFile:
    """An open store. Who reads does not wait for those who write.

    A store of an older version is brought to the newest one; opened to be read only, it is left as it is, and a copy in memory is read.
    Raises TableError for a file that is no vote store or of a newer version.
    """

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        self._writing, self._reading = threading.RLock(), threading.RLock()
        self._in_transaction: int | None = None  # the thread whose transaction is open
        self._flushing, self._committed, self._flushed = threading.Lock(), 0, 0  # numbers of transactions
        self._log: Path | None = None  # to which SQLite appends what is committed
        self._writer = _connect(path, "ro" if read_only else "rwc")
        self._reader = self._writer
        try:
            version = sql.version_of(self._writer, path)
            if read_only and version == 0:
                raise TableError(f"{path}: an empty file; expected a vote store")
            if read_only and version < len(sql.MIGRATIONS):
                self._writer = self._reader = _copy(self._writer, path)
            if not read_only:
                ((mode,),) = self._writer.execute("PRAGMA journal_mode = WAL").fetchall()
                for pragma in ("synchronous = FULL", "foreign_keys = ON"):
                    self._writer.execute(f"PRAGMA {pragma}")
                sql.migrate(self._writer, path)
                if mode == "wal":  # else the file system cannot, and SQLite itself waits for the disk at every transaction
                    self._log = path.with_name(f"{path.name}-wal")
                    self._writer.execute("PRAGMA synchronous = NORMAL")
                self._reader = _connect(path, "ro")
        except BaseException:
            self._writer.close()
            raise

    def close(self) -> None:
        """Close the file."""
        with self._writing, self._reading:
            self._reader.close()
            self._writer.close()

    @contextlib.contextmanager
    def transaction(self, *, flush: bool = True) -> Iterator[sqlite3.Connection]:
        """Give the database in a transaction that is whole at its end, or undone on an error; one inside of another is part of it.

        With `flush` it is on the disk when the block has ended. Without, it survives the end of the process, and that of the machine
        once a later one is flushed.
        """
        with self._writing:
            if self._in_transaction is not None:
                yield self._writer
                return
            self._writer.execute("BEGIN IMMEDIATE")  # a later lock could fail where another process has written meanwhile
            self._in_transaction = threading.get_ident()
            try:
                yield self._writer
                self._writer.execute("COMMIT")
                self._committed += 1
            except BaseException:
                self._writer.execute("ROLLBACK")
                raise
            finally:
                self._in_transaction = None
        if flush:
            self._flush()

    def _flush(self) -> None:
        """Wait until what was committed is on the disk, as SQLite does with `synchronous = FULL`, but where others write meanwhile.

        All transactions that end during one wait share the next, so that fifty voters wait for the disk about as long as one.
        """
        mine = self._committed
        with self._flushing:
            if self._log is None or self._flushed >= mine:
                return
            newest = self._committed
            _sync(self._log)
            self._flushed = newest

    def rows(self, statement: str, *values: object) -> list[tuple]:
        """Return the rows of a SELECT; of a thread inside of a transaction, with what it has changed."""
        if self._in_transaction == threading.get_ident():
            return self._writer.execute(statement, values).fetchall()
        with self._reading:
            return self._reader.execute(statement, values).fetchall()


def _connect(path: Path, mode: str) -> sqlite3.Connection:
    address = f"{path.resolve().as_uri()}?mode={mode}"
    return sqlite3.connect(address, uri=True, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)


def _copy(database: sqlite3.Connection, path: Path) -> sqlite3.Connection:
    """Return a copy in memory, of the newest version, and close the database."""
    copy = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
    with contextlib.closing(database):
        database.backup(copy)
    sql.migrate(copy, path)
    return copy


def _sync(path: Path) -> None:
    """Wait until a file, and its name in the folder, are on the disk."""
    for place in (path, path.parent):
        number = os.open(place, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)
