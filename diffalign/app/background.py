"""A command of diffalign that runs beside the pages, as a process that writes into a log."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from diffalign.app.jobs import NICE
from diffalign.core.errors import ConfigError

END = 2000  # characters of the log that are read at most


@dataclass(slots=True)
class Background:
    """One process at most."""

    log: Path
    command: tuple[str, ...] = ()  # of the last process
    process: subprocess.Popen[bytes] | None = None

    def start(self, command: Sequence[str], output: Path | None = None) -> None:
        """Start a command, whose results go into the file `output`, if given, instead of the log. Raises ConfigError while one runs."""
        if self.busy:
            raise ConfigError("the last one is still at work; wait until it has ended")
        self.command = tuple(command)
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("wb") as log, (output or self.log).open("ab") as results:
            self.process = subprocess.Popen(self.command, stdin=subprocess.DEVNULL, stdout=results, stderr=log)  # noqa: S603, a list, no shell
        psutil.Process(self.process.pid).nice(NICE)

    @property
    def busy(self) -> bool:
        """Return whether the process runs."""
        return self.process is not None and self.process.poll() is None

    @property
    def trouble(self) -> str | None:
        """Return why the process failed: its last line, or the signal that killed it; None of one that did not fail."""
        code = self.process.poll() if self.process is not None else None
        if not code:
            return None
        return f"it was killed by signal {-code}" if code < 0 else self.last_line or "it ended without a word"

    @property
    def last_line(self) -> str:
        """Return the last line of the log, which says how far it is."""
        try:
            end = self.log.read_bytes()[-END:].decode(errors="replace")
        except OSError:
            return ""
        return next((line for line in reversed(end.splitlines()) if line.strip()), "")

    def stop(self) -> None:
        """End the process, if there is one; what it had in hand is lost."""
        if self.process is not None:
            self.process.terminate()
            self.process.wait()
