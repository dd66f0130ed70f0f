"""Folders that are replaced whole, and what is left of those whose writer was killed."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import save_file

from diffalign.core.errors import TableError
from diffalign.core.files import atomic_file, atomic_folder, files_for, settle
from tests.data.text_pairs import names


@pytest.fixture(scope="module")
def dead():
    """The number of a process that has ended."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
        return process.pid


def begun(folder, writer, end, machine=None):
    """Leave what a writer of `table` leaves behind when it is killed."""
    left = folder / f".table.{machine or socket.gethostname()}-{writer}.{end}"
    left.mkdir()
    (left / "rows").write_text(end)
    return left


def test_an_atomic_folder_replaces_a_folder_and_never_a_file(tmp_path):
    (tmp_path / "old").mkdir()
    with atomic_folder(tmp_path / "old") as folder:
        (folder / "new").write_text("new")
    assert names(tmp_path / "old") == ["new"]
    (tmp_path / "note").write_text("keep me")
    with pytest.raises(TableError, match="note is a file; expected a folder"), atomic_folder(tmp_path / "note"):
        pass
    assert (tmp_path / "note").read_text() == "keep me"
    assert names(tmp_path) == ["note", "old"]


def test_what_a_killed_writer_had_begun_is_removed_and_what_it_had_moved_aside_comes_back(tmp_path, dead):
    begun(tmp_path, dead, "tmp")
    begun(tmp_path, dead, "old")
    settle(tmp_path / "table")
    assert names(tmp_path) == ["table"]
    assert (tmp_path / "table" / "rows").read_text() == "old"


def test_what_a_killed_writer_had_replaced_is_removed(tmp_path, dead):
    (tmp_path / "table").mkdir()
    begun(tmp_path, dead, "old")
    settle(tmp_path / "table")
    assert names(tmp_path) == ["table"]
    assert names(tmp_path / "table") == []


def test_the_next_writer_tidies_up_before_it_writes(tmp_path, dead):
    begun(tmp_path, dead, "old")
    with pytest.raises(KeyError), atomic_folder(tmp_path / "table"):
        raise KeyError
    assert names(tmp_path) == ["table"]
    assert (tmp_path / "table" / "rows").read_text() == "old"


def test_writers_that_live_or_work_on_another_machine_are_left_alone_and_the_latter_named(tmp_path, dead, caplog):
    kept = [begun(tmp_path, os.getppid(), "tmp"), begun(tmp_path, dead, "old", "elsewhere"), begun(tmp_path, "mine", "old")]
    settle(tmp_path / "table")
    assert names(tmp_path) == sorted(path.name for path in kept)
    assert caplog.messages == [f"{kept[1]} is of another machine: unless it is being written there, remove it"]


@pytest.mark.parametrize("mask", [0o022, 0o027])
def test_files_have_the_permissions_that_the_umask_says_whoever_writes_them(tmp_path, mask):
    before = os.umask(mask)
    try:
        with atomic_folder(tmp_path / "export") as folder:
            (folder / "part").mkdir()
            save_file({"a": np.zeros(1)}, folder / "part" / "a.safetensors")
        with atomic_file(tmp_path / "b.safetensors") as file:
            save_file({"a": np.zeros(1)}, file)
        with files_for(tmp_path / "run") as folder:
            save_file({"a": np.zeros(1)}, folder / "c.safetensors")
    finally:
        os.umask(before)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert names(tmp_path / "run") == ["c.safetensors"]
    assert len(files) == 3
    assert {path.stat().st_mode & 0o777 for path in files} == {0o666 & ~mask}


def test_files_for_a_folder_come_all_or_none(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "kept").write_text("kept")
    with contextlib.suppress(ZeroDivisionError), files_for(tmp_path / "run") as folder:
        (folder / "new").write_text("new")
        raise ZeroDivisionError
    assert names(tmp_path / "run") == ["kept"]
