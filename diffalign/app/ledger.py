"""What owners look through and correct: the votes of the app's stores, and tables in the folders that it was started with."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from diffalign.app.background import Background
from diffalign.app.commands import CLI
from diffalign.app.voters import AccessError, Accounts
from diffalign.core.errors import ConfigError, RecordError
from diffalign.data.browse import Entry, Filter, Rows, TableRows, VoteRows, sheet
from diffalign.data.corrections import Corrections
from diffalign.data.store import VoteStore
from diffalign.data.table import is_table, read_table

DEPTH, LISTED = 3, 200  # folders below each other that are searched for tables, and how many of these are offered


@dataclass(frozen=True, slots=True)
class Ledger:
    """The data of the app, by name. Every method but `owner` raises AccessError unless an owner asks."""

    stores: Mapping[str, VoteStore]
    folders: Sequence[Path]  # of tables
    workplace: Path  # for corrections and what the commands write
    accounts: Accounts
    command: Background  # the audit or rewriting that runs, at most one

    def owner(self, login: str | None) -> None:
        """Raise AccessError unless somebody is an owner."""
        if not self.accounts.is_owner(login):
            raise AccessError("only owners see and correct the votes of others")

    def names(self, login: str | None) -> list[str]:
        """Return the names of the stores and of tables, the paths of which are relative to a folder."""
        self.owner(login)
        patterns = [f"{'*/' * depth}*/manifest.json" for depth in range(DEPTH)]
        folders = (file.parent for folder in self.folders for pattern in patterns for file in sorted(folder.glob(pattern)))
        tables = (folder for folder in folders if is_table(folder))
        return [*self.stores, *(str(self._relative(table)) for table in itertools.islice(tables, LISTED))]

    def _relative(self, table: Path) -> Path:
        return next(table.relative_to(folder) for folder in self.folders if table.is_relative_to(folder))

    def path(self, login: str | None, name: str) -> Path:
        """Return where the data of a name lie. Raises ConfigError for a name of none; a table outside the folders has none."""
        self.owner(login)
        if name in self.stores:
            return self.stores[name].path
        for folder in self.folders if name.isprintable() else ():
            path = (folder / name).resolve()
            if path != folder.resolve() and path.is_relative_to(folder.resolve()) and is_table(path):
                return path
        raise ConfigError(f"there is no table {name!r} in the folders that the app was started with; import other data with `data import`")

    def rows(self, login: str | None, name: str) -> Rows:
        """Return what is looked through."""
        path = self.path(login, name)
        return VoteRows(self.stores[name]) if name in self.stores else TableRows(read_table(path))

    def users(self, login: str | None, name: str) -> list[str]:
        """Return whose votes there are."""
        rows = self.rows(login, name)
        return list(dict.fromkeys(entry.user for entry in rows.entries() if entry.user is not None))

    def sheet(self, login: str | None, name: str, wanted: Filter, number: int, rows: int) -> tuple[list[Entry], int]:
        """Return the entries on a sheet, and how many there are in all."""
        return sheet(self.rows(login, name).entries(), wanted, number, rows)

    def corrections(self, login: str | None, name: str) -> Corrections:
        """Return the corrections of a table."""
        digest = hashlib.sha256(str(self.path(login, name)).encode()).hexdigest()[:12]
        return Corrections(self.workplace / "corrections" / f"{Path(name).name}-{digest}.jsonl")

    def corrected(self, login: str | None, name: str) -> Mapping[str, str | None]:
        """Return the corrected labels of a table, None for a removed one; a store's own votes are corrected already."""
        return {} if name in self.stores else self.corrections(login, name).labels()

    def correct(self, login: str | None, name: str, record: str, label: str | None) -> None:
        """Put another label in the place of a record's, or none; the one before is kept as history.

        Raises RecordError for a label that is none, or for no such vote.
        """
        self.owner(login)
        editor = login or "owner"
        if name in self.stores:
            self.stores[name].correct(self.stores[name].question(record).id, editor, label)
            return
        if record not in read_table(self.path(login, name)).column("id"):
            raise RecordError(f"{name}: there is no record `{record[:40]}`")
        self.corrections(login, name).add(record, editor, label)

    def start(self, login: str | None, name: str, kind: str) -> None:
        """Start a command of `COMMANDS` on data, as a process of its own. Raises ConfigError while another one runs."""
        path = self.path(login, name)
        flags = {
            "inspect": lambda: ["--contact_sheet", str(self.workplace / "contact_sheet.png")],
            "validate": list,
            "explain": lambda: ["--output_dir", str(self.explanation.parent)],
            "correct": lambda: self._correcting(login, name),
        }
        if kind not in flags:
            raise ConfigError(f"there is no command {kind!r}; expected {', '.join(flags)}")
        command = [*CLI, "data", kind, "--dataset_name", str(path), *flags[kind]()]
        if not self.command.busy:
            self.report.unlink(missing_ok=True)
        self.command.start(command, self.report)

    def _correcting(self, login: str | None, name: str) -> list[str]:
        if name in self.stores:
            raise ConfigError("corrected votes count already; there is nothing to write")
        file, destination = self.corrections(login, name).file, self.workplace / "corrected" / Path(name).name
        return ["--corrections", str(file), "--output_dir", str(destination), "--overwrite"]

    @property
    def explanation(self) -> Path:
        """Return the page of the last `explain`."""
        return self.workplace / "explained" / "explanation.html"

    @property
    def report(self) -> Path:
        """Return the file with what the last command found."""
        return self.workplace / "audit.txt"
