"""`diffalign rewrite` as a process that answers the Rewrite page: started with the first prompt, and ended when nobody asks any more."""

from __future__ import annotations

import contextlib
import json
import subprocess
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffalign.app.commands import CLI
from diffalign.core.errors import CheckpointError, ConfigError

COMMAND = (*CLI, "rewrite")
IDLE_SECONDS = 600.0  # without a prompt, after which the process ends and its memory is free


@dataclass(frozen=True, slots=True)
class DrawnVersion:
    """What a writer makes of a prompt at several seeds, and the pictures of that as encoded files."""

    texts: tuple[str, ...]
    images: tuple[bytes, ...]


class WriterProcess:
    """Writers and a model that stay loaded between prompts, in a process of their own.

    It reads from a pipe of this process, so that it ends when this one does.
    """

    def __init__(self, flags: Sequence[str], log: Path, command: Sequence[str] = COMMAND) -> None:
        self._command, self._log = [*command, *flags, "--follow"], log
        self._process: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()
        self._idle: threading.Timer | None = None

    def versions(self, prompt: str, seed: int) -> dict[str, DrawnVersion]:
        """Return what the writers make of a prompt, by writer: prompt, base and trained. One prompt is answered at a time.

        Raises ConfigError where the prompt is refused, CheckpointError where the process ended; its log says why.
        """
        with self._lock:
            answer = self._ask({"prompt": prompt, "seed": seed})
            if "error" in answer:
                raise ConfigError(answer["error"])
            self._rest()
            return {
                name: DrawnVersion(tuple(version["texts"]), tuple(Path(file).read_bytes() for file in version["images"]))
                for name, version in answer.items()
            }

    def close(self) -> None:
        """End the process."""
        with self._lock:
            self._end()

    def _ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        process = self._started()
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended; the loop below finds no answer
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
        for line in process.stdout:
            if line.startswith("{"):  # a library may print, too
                return json.loads(line)
        self._end()
        lines = [line for line in self._log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
        raise CheckpointError(lines[-1].removeprefix("diffalign: error: ") if lines else "the writer ended without a word")

    def _started(self) -> subprocess.Popen[str]:
        if self._process is None or self._process.poll() is not None:
            self._end()
            self._log.parent.mkdir(parents=True, exist_ok=True)
            with self._log.open("wb") as log:
                self._process = subprocess.Popen(  # noqa: S603, a list of our own making
                    self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, encoding="utf-8"
                )
        return self._process

    def _rest(self) -> None:
        """End the process some time from now, unless there is another prompt."""
        if self._idle is not None:
            self._idle.cancel()
        self._idle = threading.Timer(IDLE_SECONDS, self.close)
        self._idle.daemon = True
        self._idle.start()

    def _end(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
        if self._process is not None:
            self._process.terminate()
            with self._process:  # which waits for it and closes its pipes
                self._process = None
