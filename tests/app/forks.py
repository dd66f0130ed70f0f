"""Stands in for `subprocess` in the app: its commands are forked from a process that has the libraries, and begin in a moment.

A command does what it always does. That `python -m diffalign.cli` begins without such help is the test of the audit on the data page.
"""

from __future__ import annotations

import importlib
import os
import sys
import tempfile
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from subprocess import DEVNULL, CompletedProcess, TimeoutExpired
from time import monotonic, sleep
from typing import Any

from diffalign.app.commands import CLI
from tests.processes import SERVER, command_line, start

WANTED = ("diffalign.cli.commands.train", "diffalign.infer.draw_votes", "diffalign.train.align")  # what commands import, once for all


class Forked:
    """One process, as `subprocess.Popen` tells of it."""

    def __init__(self, forks: Forks, pid: int) -> None:
        self._forks, self.pid, self.returncode = forks, pid, None

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = self._forks.ask(self.pid)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        end = monotonic() + (timeout or float("inf"))
        while (status := self.poll()) is None:
            if monotonic() > end:
                raise TimeoutExpired(list(CLI), timeout or 0.0)
            sleep(0.02)
        return status

    def terminate(self) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.pid, 15)


class Forks:
    """The client of a process that forks; of its methods those have the names of `subprocess`."""

    DEVNULL, TimeoutExpired = DEVNULL, TimeoutExpired

    def __init__(self, pipe: Connection) -> None:
        self._pipe, self._lock = pipe, threading.Lock()

    def ask(self, question: Any) -> Any:
        with self._lock:
            self._pipe.send(question)
            return self._pipe.recv()

    def Popen(self, command: Sequence[str], *, stdout: Any, stderr: Any, start_new_session: bool = False, **_: Any) -> Forked:  # noqa: N802  # the name of the original
        assert tuple(command[: len(CLI)]) == CLI
        return Forked(self, self.ask((list(command[len(CLI) :]), stdout.name, stderr.name, start_new_session)))

    def run(self, command: Sequence[str], *, timeout: float | None = None, **_: Any) -> CompletedProcess[str]:
        with tempfile.NamedTemporaryFile() as out, tempfile.NamedTemporaryFile() as err:
            status = self.Popen(command, stdout=out, stderr=err).wait(timeout)
            return CompletedProcess(list(command), status, Path(out.name).read_text(), Path(err.name).read_text())


@contextmanager
def forking(log: Path) -> Iterator[Connection]:
    """Start the process that forks, and give the other end of its pipe, for `Forks` here or in another process."""
    ours, theirs = SERVER.Pipe()
    process = start(log, _answer, theirs)
    theirs.close()
    try:
        yield ours
    finally:
        process.kill()
        process.join()
        ours.close()


def _answer(pipe: Connection) -> None:
    """Fork for every command, and tell of every process whether it has ended."""
    while True:
        question = pipe.recv()
        if isinstance(question, int):
            ended, status = os.waitpid(question, os.WNOHANG)
            pipe.send(os.waitstatus_to_exitcode(status) if ended else None)
            continue
        for module in WANTED:
            importlib.import_module(module)
        if pid := os.fork():
            pipe.send(pid)
        else:
            _command(pipe, *question)


def _command(pipe: Connection, words: list[str], out: str, err: str, apart: bool) -> None:
    """Be a command for the rest of the process's life."""
    status = 1
    try:
        pipe.close()
        for stream, file in enumerate((os.devnull, out, err)):
            os.dup2(os.open(file, os.O_RDONLY if stream == 0 else os.O_WRONLY | os.O_APPEND), stream)
        if apart:
            os.setsid()
        command_line(words)
    except SystemExit as ending:
        status = ending.code
    except BaseException:  # nobody else would tell of it
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
