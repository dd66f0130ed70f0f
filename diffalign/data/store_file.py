"""The SQLite file of a vote store: one connection that writes, and one that reads meanwhile, for all threads of a process."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

from diffalign.core.errors import TableError
from diffalign.data import store_schema as sql

BUSY_SECONDS = 10.0  # how long a writer waits for another one


class StoreFile:
    """An open store. What a transaction has written is on the disk when it ends; who reads does not wait for that.

    A store of an older version is brought to the newest one; opened to be read only, it is left as it is, and a copy in memory is read.
    Raises TableError for a file that is no vote store or of a newer version.
    """

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        self._writing, self._reading = threading.RLock(), threading.RLock()
        self._in_transaction: int | None = None  # the thread whose transaction is open
        self._writer = _connect(path, "ro" if read_only else "rwc")
        self._reader = self._writer
        try:
            version = sql.version_of(self._writer, path)
            if read_only and version == 0:
                raise TableError(f"{path}: an empty file; expected a vote store")
            if read_only and version < len(sql.MIGRATIONS):
                self._writer = self._reader = _copy(self._writer, path)
            if not read_only:
                for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
                    self._writer.execute(f"PRAGMA {pragma}")
                sql.migrate(self._writer, path)
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
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Give the database in a transaction that is on the disk at its end, or undone on an error; one inside of another is part of it."""
        with self._writing:
            if self._in_transaction is not None:
                yield self._writer
                return
            self._writer.execute("BEGIN IMMEDIATE")  # a later lock could fail where another process has written meanwhile
            self._in_transaction = threading.get_ident()
            try:
                yield self._writer
                self._writer.execute("COMMIT")
            except BaseException:
                self._writer.execute("ROLLBACK")
                raise
            finally:
                self._in_transaction = None

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
