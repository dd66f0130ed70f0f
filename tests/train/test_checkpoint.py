"""Checkpoints are whole or not there, are counted by number, and come back bit for bit."""

from __future__ import annotations

import json
import os
import socket

import pytest
import torch

from diffalign.core.errors import CheckpointError
from diffalign.train import checkpoint
from diffalign.train.checkpoint import FACTS, STATE, WEIGHTS, facts, find, load, save


def weights(value):
    return {"unet.lora_A": torch.full((2, 3), float(value)), "unet.lora_B": torch.arange(3.0)}


def put(folder, *steps, limit=None):
    """Save a checkpoint for each step and return their folders."""
    return [save(folder, step, weights(step), {"guard": {"skipped": step}}, {"seed": 1}, limit) for step in steps]


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_checkpoint_gives_back_what_was_saved(tmp_path):
    network = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.1)
    network(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    state = {"optimizer": optimizer.state_dict(), "ema": None, "guard": {"recent": [0.5, 0.1], "skipped": 2}}
    folder = save(tmp_path, 3, weights(0.1), state, {"seed": 7, "table": "abc"}, 2)
    assert folder == tmp_path / "checkpoint-3"
    assert facts(folder) == {"step": 3, "seed": 7, "table": "abc"}
    loaded, found = load(folder)
    assert all(torch.equal(loaded[name], value) for name, value in weights(0.1).items())
    assert found["guard"] == state["guard"]
    assert found["ema"] is None
    restored = torch.optim.AdamW(network.parameters(), lr=0.5)
    restored.load_state_dict(found["optimizer"])
    assert restored.param_groups[0]["lr"] == 0.1
    for parameter in network.parameters():
        assert torch.equal(restored.state[parameter]["exp_avg_sq"], optimizer.state[parameter]["exp_avg_sq"])


def test_the_latest_is_told_by_number_and_not_by_name(tmp_path):
    folders = put(tmp_path, 9, 10, 2)
    assert find(tmp_path, "latest") == folders[1]


def test_without_checkpoints_there_is_no_latest(tmp_path):
    assert find(tmp_path, "latest") is None
    assert find(tmp_path / "not there", "latest") is None


def test_other_folders_are_no_checkpoints(tmp_path):
    put(tmp_path, 1)
    for name in ("checkpoint-best", "checkpoint-2.bak", "my-checkpoint-3", ".checkpoint-4.123.tmp"):
        (tmp_path / name).mkdir()
        (tmp_path / name / FACTS).write_text("{}")
    assert find(tmp_path, "latest") == tmp_path / "checkpoint-1"


@pytest.mark.parametrize(("limit", "left"), [(None, [8, 9, 10, 11]), (1, [11]), (2, [10, 11]), (9, [8, 9, 10, 11])])
def test_the_oldest_above_the_limit_are_removed(tmp_path, limit, left):
    put(tmp_path, 8, 9, 10, 11, limit=limit)
    assert names(tmp_path) == sorted(f"checkpoint-{step}" for step in left)


def test_the_checkpoint_just_written_is_never_removed(tmp_path):
    # a run that was taken up again from an older checkpoint, with newer ones still there
    put(tmp_path, 100, 200)
    (folder,) = put(tmp_path, 150, limit=1)
    assert folder.is_dir()
    assert facts(folder)["step"] == 150


@pytest.mark.parametrize("missing", [WEIGHTS, STATE, FACTS])
def test_an_incomplete_checkpoint_is_refused_by_name_and_passed_over_as_latest(tmp_path, missing):
    _, newest = put(tmp_path, 1, 2)
    (newest / missing).unlink()
    assert find(tmp_path, "latest") == tmp_path / "checkpoint-1"
    for wanted in (str(newest), newest.name):
        with pytest.raises(CheckpointError, match=f"checkpoint-2: the checkpoint has no {missing}"):
            find(tmp_path, wanted)


def test_a_checkpoint_is_found_by_path_and_by_its_name_in_the_output_folder(tmp_path):
    (folder, _) = put(tmp_path, 5, 6)
    assert find(tmp_path, "checkpoint-5") == folder
    assert find(tmp_path / "other run", str(folder)) == folder


def test_a_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"`resume_from_checkpoint`: .*checkpoint-7"):
        find(tmp_path, "checkpoint-7")


@pytest.mark.parametrize("fails", ["save_file", "torch.save", "json.dumps"])
def test_a_failed_save_leaves_no_trace_and_the_old_checkpoints(tmp_path, monkeypatch, fails):
    put(tmp_path, 1)

    def full(*_, **__):
        raise OSError("no space left on device")

    monkeypatch.setattr(f"diffalign.train.checkpoint.{fails}", full)
    with pytest.raises(OSError, match="no space left"):
        put(tmp_path, 2, limit=1)
    assert names(tmp_path) == ["checkpoint-1"]


def test_saving_the_same_step_again_replaces_it(tmp_path):
    put(tmp_path, 4)
    save(tmp_path, 4, weights(9.0), {}, {"seed": 2}, None)
    assert facts(tmp_path / "checkpoint-4") == {"step": 4, "seed": 2}
    assert torch.equal(load(tmp_path / "checkpoint-4")[0]["unet.lora_A"], torch.full((2, 3), 9.0))
    assert names(tmp_path) == ["checkpoint-4"]


def test_what_a_killed_save_left_behind_is_not_taken_for_a_checkpoint(tmp_path):
    put(tmp_path, 1)
    half = tmp_path / f".checkpoint-2.{socket.gethostname()}-{os.getpid()}.tmp"
    half.mkdir()
    (half / WEIGHTS).write_bytes(b"half")
    assert find(tmp_path, "latest") == tmp_path / "checkpoint-1"
    put(tmp_path, 2)
    assert names(tmp_path) == ["checkpoint-1", "checkpoint-2"]


def test_a_checkpoint_runs_no_code_when_it_is_loaded(tmp_path):
    class Shell:
        def __reduce__(self):
            return os.getcwd, ()

    (folder,) = put(tmp_path, 1)
    torch.save({"optimizer": Shell()}, folder / STATE)
    with pytest.raises(Exception, match=r"[Ww]eights"):
        load(folder)


def test_the_facts_are_plain_json(tmp_path):
    (folder,) = put(tmp_path, 1)
    assert json.loads((folder / checkpoint.FACTS).read_text())["seed"] == 1
