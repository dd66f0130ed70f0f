"""Trainings are processes whose state is read from their folders: a restarted server misses nothing."""

from __future__ import annotations

import json
import os
import sys
import textwrap
import time

import psutil
import pytest
from PIL import Image

from diffalign.app.jobs import Queue
from diffalign.core.errors import ConfigError, TableError
from diffalign.data.pictures import encode_image
from diffalign.data.records import Candidate, Record
from diffalign.data.table import read_table
from diffalign.train.requests import SAVE

# Stands in for `diffalign train`: writes a line, waits until told to end or to finish, and remembers how often it was started.
TRAINING = textwrap.dedent("""
    import json, pathlib, signal, sys, time
    run = pathlib.Path(sys.argv[sys.argv.index("--output_dir") + 1])
    run.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
    with (run / "train_log.jsonl").open("a") as log:
        log.write(json.dumps({"step": 1, "loss": 0.7}) + "\\n{half a li")
    while not (run / "finish").exists():
        time.sleep(0.01)
    (run / "run.json").write_text("{}")
""")


@pytest.fixture
def queue(tmp_path):
    (tmp_path / "training.py").write_text(TRAINING)
    queue = Queue(tmp_path / "jobs", (sys.executable, str(tmp_path / "training.py")))
    yield queue
    for job in queue.jobs():
        if job.alive:
            queue.stop(job.name)
    for child in queue._children:
        child.wait()


def records(count: int = 2):
    image = encode_image(Image.new("L", (8, 8)))
    return [Record(str(n), "a star", (Candidate(image=image), Candidate(image=image)), 1.0) for n in range(count)]


def until(condition) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.01)


def finish(job) -> None:
    until(lambda: job.log())
    (job.run / "finish").touch()


def test_one_runs_after_the_other_and_each_is_followed_by_its_files(queue):
    first, second = queue.add("first", records(), ["--method", "mapo"]), queue.add("second", records(), [])
    queue.step()
    queue.step()
    assert [job.state for job in queue.jobs()] == ["running", "waiting"]
    assert "--method mapo" in first.command
    assert len(read_table(first.folder / "votes")) == 2
    finish(first)
    until(lambda: queue.job("first").state == "done")
    queue.step()
    assert queue.job("second").state == "running"
    assert queue.job("first").log() == [{"step": 1, "loss": 0.7}]
    finish(second)
    until(lambda: queue.job("second").state == "done")


def test_a_new_server_finds_what_an_earlier_one_started(queue):
    job = queue.add("mine", records(), [])
    queue.step()
    until(lambda: job.log())
    other = Queue(queue.folder, queue.command)
    assert other.job("mine").state == "running"
    assert other.step() is None
    other.stop("mine")
    until(lambda: other.job("mine").state == "stopped")
    assert "stopped" in other.job("mine").words()


def test_a_stopped_or_killed_training_goes_on(queue):
    job = queue.add("mine", records(), [])
    child = queue.step()
    until(lambda: job.log())
    psutil.Process(child.pid).kill()
    until(lambda: queue.job("mine").state == "failed")
    assert queue.step() is None  # not by itself
    assert (queue.job("mine").status, "SIGKILL" in queue.job("mine").end()) == (-9, True)
    with pytest.raises(ConfigError, match="failed"):
        queue.ask("mine", SAVE)
    queue.resume("mine")
    queue.step()
    assert (queue.job("mine").state, queue.job("mine").status) == ("running", None)
    queue.ask("mine", SAVE)
    assert (queue.job("mine").run / SAVE).exists()
    with pytest.raises(ConfigError, match="running"):
        queue.resume("mine")
    with pytest.raises(ConfigError, match="stop it"):
        queue.delete("mine")
    queue.stop("mine")
    until(lambda: queue.job("mine").state == "stopped")
    queue.delete("mine")
    assert queue.jobs() == []
    assert list(queue.folder.iterdir()) == []


def test_a_waiting_training_leaves_the_queue_when_it_is_stopped(queue):
    queue.add("mine", records(), [])
    queue.stop("mine")
    assert queue.job("mine").state == "stopped"
    assert queue.step() is None


def test_a_number_that_another_process_has_now_is_not_taken_for_the_training(queue):
    job = queue.add("mine", records(), [])
    facts = json.loads((job.folder / "job.json").read_text())
    (job.folder / "job.json").write_text(json.dumps(facts | {"pid": os.getpid(), "born": 1.0}))
    assert queue.job("mine").state == "failed"


def test_names_that_are_taken_or_lead_elsewhere_are_refused(queue):
    queue.add("mine", records(), [])
    for name in ("mine", "../mine", "", ".hidden", "a/b", "x" * 65, "<script>"):
        with pytest.raises(ConfigError):
            queue.add(name, records(), [])
    with pytest.raises(TableError):
        queue.add("empty", [], [])
    queue.add("empty", records(), [])  # the name was not lost
    with pytest.raises(ConfigError, match="no training"):
        queue.job("other")


def test_a_training_that_another_owner_deletes_at_the_same_time_is_gone_once(queue, monkeypatch):
    job = queue.add("mine", records(), [])
    monkeypatch.setattr(queue, "job", lambda name: job)  # both have looked before either deletes
    queue.delete("mine")
    with pytest.raises(ConfigError, match="mine"):
        queue.delete("mine")
    assert list(queue.folder.iterdir()) == []


def test_half_of_a_training_that_is_being_deleted_is_none(queue):
    job = queue.add("mine", records(), [])
    job.folder.rename(job.folder.with_name(".mine.deleted"))  # as a kill leaves it
    assert queue.jobs() == []
    queue.add("mine", records(), [])
    queue.delete("mine")
    assert list(queue.folder.iterdir()) == []


def test_jobs_of_an_earlier_version_are_read_and_progress_is_the_last_line_that_tells_it(queue):
    job = queue.add("mine", records(), ["--max_train_steps", "40", "--validation_prompts", "a star", "a ring"])
    facts = json.loads((job.folder / "job.json").read_text())
    (job.folder / "job.json").write_text(json.dumps({name: value for name, value in facts.items() if name != "status"}))
    (job.folder / "log.txt").write_text("train: 3 of 40 steps in 00:03, 00:37 left\ntrain: 9 of 40 steps in 00:09, 00:31 left, loss=1\nhm")
    assert queue.job("mine").progress() == "train: 9 of 40 steps in 00:09, 00:31 left"
    assert queue.job("mine").flag("validation_prompts") == ["a star", "a ring"]
    assert queue.job("mine").flag("missing") == []
