"""An earlier run that is replaced: whatever is killed, it or the new one is there whole."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from diffalign.core.claim import ASIDE, claim, settle
from diffalign.core.errors import CheckpointError
from diffalign.core.files import atomic_folder
from diffalign.core.files import write as whole_files
from diffalign.core.runs import Run
from tests.killing import killed_at, tree

PATTERNS = ("run.json", "config.yaml", "adapter.safetensors", "checkpoint-*", "validation", "train_log.jsonl", "data")
FACTS = {"method": "diffusion_dpo", "base": "assets/tiny-sd", "train_method": "lora"}
KEPT = {"mine.txt": b"not of a run"}


def write(folder: Path, name: str, text: str) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def earlier(folder: Path) -> dict[str, bytes]:
    """Write a finished run and a file that is none of its own; return the files of the run."""
    for name in ("adapter.safetensors", "config.yaml", "checkpoint-4/state.pt", "validation/step-000000.png", "data/rows"):
        write(folder, name, f"old {name}")
    write(folder, "run.json", json.dumps(FACTS))
    own = tree(folder)
    write(folder, "mine.txt", "not of a run")
    return own


def visible(folder: Path) -> dict[str, bytes]:
    """Return the files, but for halves of a checkpoint and of a result, which nobody reads."""
    return {name: value for name, value in tree(folder).items() if not name.startswith((".checkpoint-", ".run.json."))}


def train(folder: Path, *, checkpoints: bool = True, fails: bool = False) -> None:
    """Train in the folder, as far as its files can tell."""
    with claim(folder, PATTERNS):
        write(folder, "data/rows", "new")
        write(folder, "train_log.jsonl", "new")
        write(folder, "validation/step-000000.png", "new")
        if fails:
            raise RuntimeError("no such file")
        if checkpoints:
            with atomic_folder(folder / "checkpoint-2") as temporary:
                (temporary / "state.pt").write_text("new")
        write(folder, "adapter.safetensors", "new")
        whole_files({folder / "run.json": json.dumps({**FACTS, "method": "mapo"})})


def test_a_run_that_ends_replaces_the_earlier_one(tmp_path):
    earlier(tmp_path)
    train(tmp_path)
    assert Run.open(tmp_path).method == "mapo"
    assert (tmp_path / "mine.txt").exists()
    assert not list(tmp_path.glob("config.yaml"))  # of the earlier run
    assert not (tmp_path / ASIDE).exists()


def test_a_run_that_fails_before_its_first_checkpoint_leaves_the_earlier_one_as_it_was(tmp_path):
    own = earlier(tmp_path)
    with pytest.raises(RuntimeError):
        train(tmp_path, fails=True)
    assert tree(tmp_path) == own | KEPT


@pytest.mark.parametrize("checkpoints", [True, False], ids=["checkpoints", "none"])
def test_killed_at_any_moment_one_of_the_two_is_whole(tmp_path, checkpoints):
    last, outcomes = 0, []
    while True:
        last += 1
        folder = tmp_path / str(last)
        own = earlier(folder)
        with killed_at(last) as life:
            train(folder, checkpoints=checkpoints)
        settle(folder)  # what the next command does first
        new = (folder / "checkpoint-2").exists() or Run.open(folder).method == "mapo"
        if new:
            assert not any((folder / name).read_bytes() == value for name, value in own.items() if (folder / name).is_file())
        else:
            assert visible(folder) == own | KEPT, f"killed at deed {last}"
        assert not (folder / ASIDE).exists()
        outcomes.append(new)
        if life.deeds < last:
            break
    assert outcomes == sorted(outcomes)  # the old one up to some moment, the new one from there on
    assert len(outcomes) > 20
    assert any(outcomes)
    assert not all(outcomes)


@pytest.mark.parametrize("second", range(1, 12))
def test_killed_again_while_it_is_put_back_the_earlier_run_is_not_lost(tmp_path, second):
    own = earlier(tmp_path)
    with killed_at(15):
        train(tmp_path)
    with killed_at(second):
        settle(tmp_path)
    settle(tmp_path)
    assert visible(tmp_path) == own | KEPT


def test_the_next_command_that_opens_the_folder_finds_the_earlier_run(tmp_path):
    earlier(tmp_path)
    with pytest.MonkeyPatch.context() as patch, claim(tmp_path, PATTERNS):
        patch.setattr("diffalign.core.claim._settle", lambda *_: None)  # a kill leaves no time to put anything back
    owner = json.loads((tmp_path / ASIDE / "owner.json").read_text())
    with pytest.raises(CheckpointError, match="no finished run"):
        Run.open(tmp_path)  # this very process may still be training
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    (tmp_path / ASIDE / "owner.json").write_text(json.dumps(owner | {"pid": process.pid}))
    assert Run.open(tmp_path).method == "diffusion_dpo"


@pytest.mark.parametrize("changes", [{"pid": os.getppid(), "started": None}, {"host": "elsewhere"}], ids=["living", "elsewhere"])
def test_a_claim_that_is_held_is_left_alone(tmp_path, changes):
    earlier(tmp_path)
    (tmp_path / ASIDE).mkdir()
    shutil.move(tmp_path / "run.json", tmp_path / ASIDE / "run.json")
    started = psutil.Process(os.getppid()).create_time()
    owner = {"host": socket.gethostname(), "pid": os.getpid(), "started": started, "patterns": list(PATTERNS)} | changes
    owner["started"] = owner["started"] or started
    (tmp_path / ASIDE / "owner.json").write_text(json.dumps(owner))
    settle(tmp_path)
    assert (tmp_path / ASIDE / "run.json").exists()


def test_what_a_downloaded_folder_says_was_moved_reaches_nothing_outside_it(tmp_path):
    folder, home = tmp_path / "run", tmp_path / "home"
    write(home, "letter.txt", "mine")
    (folder / ASIDE).mkdir(parents=True)
    (folder / "link").symlink_to(home)
    dead = {"host": socket.gethostname(), "pid": 2**22 + 1, "started": 0.0}
    (folder / ASIDE / "complete").touch()
    for pattern in ("../home/*", "link/*", str(home / "*"), "..", 7, "**/letter.txt"):
        (folder / ASIDE).mkdir(exist_ok=True)
        (folder / ASIDE / "complete").touch()
        (folder / ASIDE / "owner.json").write_text(json.dumps(dead | {"patterns": [pattern]}))
        with pytest.raises(CheckpointError):
            Run.open(folder)
        assert tree(home) == {"letter.txt": b"mine"}, pattern
    shutil.rmtree(folder / ASIDE, ignore_errors=True)
    (folder / ASIDE).symlink_to(home)
    with pytest.raises(CheckpointError):
        Run.open(folder)
    assert tree(home) == {"letter.txt": b"mine"}
