"""Answers of judges on disk, so that a question is asked once: a SQLite file, which threads and processes may share."""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import threading
from pathlib import Path
from typing import Any

from diffalign.core.errors import ConfigError

FILE = "judges.db"


class KeptAnswers:
    """Answers by a hash of their question; opened when it is first used."""

    def __init__(self, file: str | None = None) -> None:
        """`file` is made if it is not there; None for the user's own (`~/.cache/diffalign`, or below XDG_CACHE_HOME)."""
        home = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "diffalign"
        self.file = (Path(file) if file else home / FILE).expanduser()
        self._lock, self._opened = threading.Lock(), None

    def get(self, key: str) -> Any:
        """Return the answer to a question, None where none is kept."""
        with self._lock:
            row = self._run("select answer from answers where key = ?", key).fetchone()
        return None if row is None else json.loads(row[0])

    def put(self, key: str, answer: Any) -> None:
        """Keep an answer that is not None."""
        with self._lock:
            self._run("insert or replace into answers values (?, ?)", key, json.dumps(answer))

    def _run(self, statement: str, *values: str) -> sqlite3.Cursor:
        try:
            if self._opened is None:
                self.file.parent.mkdir(parents=True, exist_ok=True)
                self._opened = sqlite3.connect(self.file, timeout=60.0, isolation_level=None, check_same_thread=False)
                self._opened.execute("create table if not exists answers (key text primary key, answer text not null) without rowid")
            return self._opened.execute(statement, values)
        except (sqlite3.Error, OSError) as error:
            raise ConfigError(f"{self.file}: answers of judges cannot be kept here ({error}); name another file by `cache`") from error


def key_of(**facts: Any) -> str:
    """Return the hash of a question; bytes among the facts count by their own hash."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=lambda data: hashlib.sha256(data).hexdigest()).encode()).hexdigest()
