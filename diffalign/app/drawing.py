"""What draws pictures beside the pages: `diffalign votes draw`, as a process that writes into a log."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

from diffalign.app.commands import draw_command
from diffalign.core.errors import ConfigError
from diffalign.infer.options import DrawVotesConfig

END = 2000  # characters of the log that are read at most


@dataclass(slots=True)
class Drawing:
    """One process that draws, at most; it ends by itself where the app is killed."""

    log: Path
    command: tuple[str, ...] = ()  # of the last process
    process: subprocess.Popen[bytes] | None = None

    def start(self, config: DrawVotesConfig) -> None:
        """Start to draw. Raises ConfigError while it draws."""
        if self.busy:
            raise ConfigError("it is drawing; wait until it has ended")
        self.command = tuple(draw_command(config))
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(self.command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)  # noqa: S603, a list, no shell

    @property
    def busy(self) -> bool:
        """Return whether it is drawing."""
        return self.process is not None and self.process.poll() is None

    @property
    def trouble(self) -> str | None:
        """Return why the drawing failed: its last line, or the signal that killed it; None of one that did not fail."""
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
