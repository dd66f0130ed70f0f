"""Trainings as processes of their own: they outlive the page and the server, and wait for each other in a queue.

A job is a folder with job.json, what was voted until then as a table, the log of its process, and the output_dir of
`diffalign train`. All that is known of a job is read from there, so a restarted server, or a killed one, misses nothing.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import psutil

from diffalign.app.commands import CLI, typed
from diffalign.core.errors import ConfigError
from diffalign.core.files import write
from diffalign.core.runs import Run
from diffalign.data.records import Record
from diffalign.data.table import write_table
from diffalign.train import requests

State = Literal["waiting", "running", "done", "stopped", "failed"]
JOB, VOTES, LOG = "job.json", "votes", "log.txt"
TRAIN_LOG, EVALUATIONS = "train_log.jsonl", "eval.jsonl"
TRAIN = (*CLI, "train")
PROGRESS = re.compile(r"^.* of .* in [\d:]+, [\d:?]+ left", re.MULTILINE)  # a line of a progress bar in a log
PICTURES = re.compile(r"step-(\d+)\.png")
TAIL = 4000  # characters of a process's log that are read at most
NICE = 10  # of processes that compute, so that the pages go on answering


@dataclass(frozen=True, slots=True)
class Job:
    """One training."""

    folder: Path
    flags: tuple[str, ...]  # of `diffalign train`
    asked: float  # when it was put into the queue, seconds since 1970
    pid: int | None = None  # of the process that was started last
    born: float = 0.0  # when that process was made: a number is used again, this is not
    held: bool = False  # whether somebody stopped it
    status: int | None = None  # with which the process ended, below zero the signal that killed it; None where nobody saw it end

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def run(self) -> Path:
        """Return the output_dir, which bears the job's name, as pictures that it draws will."""
        return self.folder / self.name

    @property
    def alive(self) -> bool:
        """Return whether its process runs."""
        try:
            process = psutil.Process(self.pid or -1)
            return abs(process.create_time() - self.born) < 1.0 and process.status() != psutil.STATUS_ZOMBIE
        except (psutil.NoSuchProcess, ValueError):
            return False

    @property
    def state(self) -> State:
        """Return how far it is."""
        if self.alive:
            return "running"
        if Run.is_in(self.run):
            return "done"
        if self.pid is None:
            return "stopped" if self.held else "waiting"
        return "stopped" if self.held else "failed"

    @property
    def command(self) -> str:
        """Return what one would type to do the same."""
        return typed([*TRAIN, *self.flags])

    def flag(self, name: str) -> list[str]:
        """Return the words behind a flag."""
        words = self.flags[self.flags.index(f"--{name}") + 1 :] if f"--{name}" in self.flags else ()
        return list(itertools.takewhile(lambda word: not word.startswith("--"), words))

    def progress(self) -> str:
        """Return the last line in which its process told how far it is and how long the rest takes; nothing before the first."""
        lines = PROGRESS.findall(self.words())
        return lines[-1] if lines else ""

    def end(self) -> str:
        """Return how its process ended, as a clause."""
        if self.status is None:
            return "ended while nobody watched it: the app or the machine was off"
        if self.status >= 0:
            return f"ended with an error (exit status {self.status})"
        name = signal.Signals(-self.status).name
        return f"was killed ({name})" + (", as systems do when memory runs out" if name == "SIGKILL" else "")

    def pictures(self) -> dict[int, Path]:
        """Return the sheets of validation pictures, by step."""
        files = (self.run / "validation").glob("step-*.png")
        return dict(sorted((int(match[1]), file) for file in files if (match := PICTURES.fullmatch(file.name))))

    def log(self) -> list[dict[str, Any]]:
        """Return the lines of the training's log, by step."""
        return list(_json_lines(self.run / TRAIN_LOG))

    def alarms(self) -> list[str]:
        """Return why the watch on over-optimisation rang, with the steps."""
        rung = [row for row in _json_lines(self.run / EVALUATIONS) if row.get("alarm")]
        return [f"step {row.get('step')}: {'; '.join(map(str, row['alarm']))}" for row in rung]

    def words(self) -> str:
        """Return the end of what its process wrote."""
        with contextlib.suppress(OSError):
            return (self.folder / LOG).read_bytes()[-TAIL:].decode(errors="replace")
        return ""

    def save(self) -> None:
        """Write job.json."""
        names = ("flags", "asked", "pid", "born", "held", "status")
        facts = {name: getattr(self, name) for name in names}
        write({self.folder / JOB: json.dumps(facts, indent=2) + "\n"})


class Queue:
    """The jobs in a folder; at most one runs at a time."""

    def __init__(self, folder: Path, command: Sequence[str] = TRAIN) -> None:
        self.folder, self.command = folder, command
        self._children: list[subprocess.Popen[bytes]] = []

    def jobs(self) -> list[Job]:
        """Return all jobs, oldest first."""
        jobs = []
        for file in self.folder.glob(f"[!.]*/{JOB}"):  # what begins with a point is being deleted
            with contextlib.suppress(FileNotFoundError):  # deleted since
                jobs.append(_read(file.parent))
        return sorted(jobs, key=lambda job: job.asked)

    def job(self, name: str) -> Job:
        """Return the job of a name. Raises ConfigError if there is none."""
        for job in self.jobs():
            if job.name == name:
                return job
        raise ConfigError(f"there is no training called {name!r}")

    def add(self, name: str, records: Iterable[Record], flags: Sequence[str]) -> Job:
        """Put a training on `records` into the queue. `flags` are those of `diffalign train` but data and folder.

        Raises ConfigError for a name that cannot be a folder's or is taken, TableError where there is no record.
        """
        if not re.fullmatch(r"[A-Za-z0-9][\w.-]{0,63}", name):
            raise ConfigError(f"the name is {name!r}; expected up to 64 letters, digits, points, dashes and underscores")
        folder = self.folder / name
        if folder.exists():
            raise ConfigError(f"there is a training called {name!r} already; choose another name")
        try:
            write_table(folder / VOTES, records)
        except BaseException:
            with contextlib.suppress(OSError):
                folder.rmdir()  # so that the name is free
            raise
        data = ("--dataset_name", str(folder / VOTES), "--output_dir", str(folder / name), "--resume_from_checkpoint", "latest")
        job = Job(folder, (*flags, *data), time.time())
        job.save()
        return job

    def step(self) -> Job | None:
        """Start the next waiting job if none runs, and return it. One thread alone calls it: two would start the same job twice."""
        jobs = self.jobs()
        self._note_ends(jobs)
        waiting = [job for job in jobs if job.state == "waiting"]
        if not waiting or any(job.alive for job in jobs):
            return None
        return self._start(waiting[0])

    def _note_ends(self, jobs: Sequence[Job]) -> None:
        """Note with which status processes ended, and let them go."""
        for child in self._children:
            if child.poll() is not None:
                for job in jobs:
                    if job.pid == child.pid:
                        replace(_read(job.folder), status=child.returncode).save()  # read anew: it may have been stopped meanwhile
        self._children = [child for child in self._children if child.returncode is None]

    def ask(self, name: str, request: str) -> None:
        """Ask a training for a checkpoint or pictures after the step in hand. Raises ConfigError unless it runs."""
        job = self.job(name)
        if not (job.alive and job.run.is_dir()):
            raise ConfigError(f"the training {name!r} is {job.state}; only one that runs can be asked for something")
        requests.ask(job.run, request)

    def _start(self, job: Job) -> Job:
        with (job.folder / LOG).open("ab") as log:
            command = [*self.command, *job.flags]  # a list, which no shell reads; an owner chose what is in it
            child = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True)  # noqa: S603, see above
        self._children.append(child)
        process = psutil.Process(child.pid)
        process.nice(NICE)
        started = Job(job.folder, job.flags, job.asked, child.pid, process.create_time())
        started.save()
        return started

    def stop(self, name: str) -> None:
        """Let a job end with a checkpoint, or leave the queue."""
        job = self.job(name)
        replace(job, held=True).save()
        if job.alive and job.pid is not None:
            with contextlib.suppress(psutil.NoSuchProcess):
                psutil.Process(job.pid).send_signal(signal.SIGTERM)

    def resume(self, name: str) -> None:
        """Put a job that was stopped, or that failed, into the queue again; it goes on at its last checkpoint."""
        job = self.job(name)
        if job.state not in ("stopped", "failed"):
            raise ConfigError(f"the training {name!r} is {job.state}; only one that was stopped or failed goes on")
        Job(job.folder, job.flags, job.asked).save()

    def delete(self, name: str) -> None:
        """Remove a job with all that it made. Raises ConfigError while it runs."""
        job = self.job(name)
        if job.alive:
            raise ConfigError(f"the training {name!r} runs; stop it first")
        aside = job.folder.with_name(f".{name}.deleted")
        shutil.rmtree(aside, ignore_errors=True)
        try:
            job.folder.replace(aside)  # at once, so that two who delete it do not meet half of it
        except FileNotFoundError as error:
            raise ConfigError(f"the training {name!r} was deleted by somebody else") from error
        shutil.rmtree(aside, ignore_errors=True)


def _read(folder: Path) -> Job:
    facts = json.loads((folder / JOB).read_text(encoding="utf-8"))
    return Job(folder, **{**facts, "flags": tuple(facts["flags"])})


def _json_lines(path: Path) -> Iterable[dict[str, Any]]:
    """Yield the whole lines of a log, the last of which may be half written."""
    with contextlib.suppress(OSError):
        for line in path.read_text(encoding="utf-8").splitlines():
            with contextlib.suppress(ValueError):
                yield json.loads(line)
