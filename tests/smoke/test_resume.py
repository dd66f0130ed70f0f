"""A run that is killed with SIGKILL, wherever it is, goes on from its last checkpoint to bit-identical weights."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from diffalign.cli.main import main
from tests.processes import command_line, start

STEPS = 30


def words(micro_sd, pairs_file, output_dir, *more):
    """Return the command line of a run."""
    options = {
        "pretrained_model_name_or_path": micro_sd,
        "dataset_name": pairs_file,
        "output_dir": output_dir,
        "max_train_steps": STEPS,
        "train_batch_size": 4,
        "rank": 2,
        "learning_rate": 1e-3,
        "checkpointing_steps": 3,
        "use_ema": None,
    }
    flags = [word for name, value in options.items() for word in ((f"--{name}",) if value is None else (f"--{name}", str(value)))]
    return ["train", *flags, *more]


@pytest.fixture(scope="module")
def one_thread():
    """Sums are taken in the order of one thread, as in the process that is killed."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def uninterrupted(micro_sd, pairs_file, tmp_path_factory, one_thread):
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert main(words(micro_sd, pairs_file, folder)) == 0
    return folder


def log_steps(folder: Path) -> int:
    path = folder / "train_log.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


def test_a_run_that_is_killed_again_and_again_ends_in_the_same_bits(micro_sd, pairs_file, uninterrupted, tmp_path):
    folder, resumed = tmp_path / "run", ("--resume_from_checkpoint", "latest")
    for kill_at in (1, 5, 12):  # before the first checkpoint, then between two
        before = () if kill_at == 1 else resumed
        process = start(tmp_path / "log", command_line, words(micro_sd, pairs_file, folder, *before))
        deadline = time.monotonic() + 300
        while log_steps(folder) < kill_at and process.is_alive() and time.monotonic() < deadline:
            time.sleep(0.002)
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL, "the run ended before it could be killed"
        assert log_steps(folder) >= kill_at
        assert not (folder / "run.json").exists()
    assert main(words(micro_sd, pairs_file, folder, *resumed)) == 0
    name = "pytorch_lora_weights.safetensors"
    ours, whole = load_file(folder / name), load_file(uninterrupted / name)
    assert ours.keys() == whole.keys()
    assert all(torch.equal(ours[key], whole[key]) for key in whole)
    logs = [[json.loads(line) for line in (f / "train_log.jsonl").read_text().splitlines()] for f in (folder, uninterrupted)]
    assert logs[0] == logs[1]
